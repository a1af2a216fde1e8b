"""Private optimisation: what may be drawn, how it is clipped, noised, counted and written down.

One name of the door is a module: ``accountant``, what mechanisms cost together.
"""

from moiety.privacy import accountant
from moiety.privacy.clip import Tape
from moiety.privacy.histogram import histogram_length, noisy_histogram
from moiety.privacy.ledger import Ledger
from moiety.privacy.noise import add_noise
from moiety.privacy.plan import Request
from moiety.privacy.sampling import RecordSampler

__all__ = [
    "Ledger",
    "RecordSampler",
    "Request",
    "Tape",
    "accountant",
    "add_noise",
    "histogram_length",
    "noisy_histogram",
]

"""What is computed: the frozen backbone, the mixture in its layers, evidence, scores.

One name of the door is a module: ``mixture``, with ``load_mixture`` and ``load_routing``.
"""

from moiety.model import mixture
from moiety.model.checkpoint import load_dense
from moiety.model.evidence import Borders, EvidenceCache, evidence
from moiety.model.mixture import Mixture
from moiety.model.score import token_nats, training_loss

__all__ = [
    "Borders",
    "EvidenceCache",
    "Mixture",
    "evidence",
    "load_dense",
    "mixture",
    "token_nats",
    "training_loss",
]

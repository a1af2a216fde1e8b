"""A release put to use by many at once, each request with the experts it may use."""

from moiety.serve.engine import Limits, LocalEngine
from moiety.serve.jobs import Ending, Job, Overloaded, Step

__all__ = ["Ending", "Job", "Limits", "LocalEngine", "Overloaded", "Step"]

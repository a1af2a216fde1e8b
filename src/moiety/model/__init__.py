"""What is computed: the frozen backbone, the mixture in its layers, evidence, scores."""

from moiety.model.checkpoint import load_dense
from moiety.model.evidence import Borders, EvidenceCache, evidence
from moiety.model.mixture import Mixture, load_mixture
from moiety.model.score import token_nats, training_loss

__all__ = [
    "Borders",
    "EvidenceCache",
    "Mixture",
    "evidence",
    "load_dense",
    "load_mixture",
    "token_nats",
    "training_loss",
]

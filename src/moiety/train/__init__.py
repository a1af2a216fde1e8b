"""Changing weights: anchors from public text, experts from an owner's.

``jobs`` is a module: the loop, for rooms that have other weights to train.
"""

from moiety.train import jobs
from moiety.train.anchor import import_anchor, new_anchor
from moiety.train.config import TrainConfig, resolve_config
from moiety.train.expert import ExpertPlan, train_expert
from moiety.train.presets import PRESETS

__all__ = [
    "PRESETS",
    "ExpertPlan",
    "TrainConfig",
    "import_anchor",
    "jobs",
    "new_anchor",
    "resolve_config",
    "train_expert",
]

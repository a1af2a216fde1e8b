"""Changing weights: anchors from public text, experts from an owner's."""

from moiety.train.anchor import import_anchor, new_anchor
from moiety.train.config import TrainConfig, resolve_config
from moiety.train.expert import ExpertPlan, train_expert
from moiety.train.presets import PRESETS
from moiety.train.sample import Sources

__all__ = [
    "PRESETS",
    "ExpertPlan",
    "Sources",
    "TrainConfig",
    "import_anchor",
    "new_anchor",
    "resolve_config",
    "train_expert",
]

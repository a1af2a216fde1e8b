"""Changing weights: anchors from public text, experts from an owner's."""

from moiety.train.anchor import import_anchor, new_anchor
from moiety.train.compute import has_fast_bf16
from moiety.train.config import TrainConfig, resolve_config
from moiety.train.expert import ExpertPlan, train_expert
from moiety.train.presets import PRESETS

__all__ = [
    "PRESETS",
    "ExpertPlan",
    "TrainConfig",
    "has_fast_bf16",
    "import_anchor",
    "new_anchor",
    "resolve_config",
    "train_expert",
]

"""Changing weights: anchors from public text, experts from an owner's, other ways to compare.

``baselines`` is a module: the other ways to make a model from several owners' text.
"""

from moiety.train import baselines
from moiety.train.anchor import import_anchor, new_anchor
from moiety.train.compute import has_fast_bf16
from moiety.train.config import TrainConfig
from moiety.train.expert import ExpertPlan, train_expert
from moiety.train.presets import PRESETS

__all__ = [
    "PRESETS",
    "ExpertPlan",
    "TrainConfig",
    "baselines",
    "has_fast_bf16",
    "import_anchor",
    "new_anchor",
    "train_expert",
]

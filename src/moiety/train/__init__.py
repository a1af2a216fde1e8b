"""Changing weights: anchors from public text, experts from an owner's, other ways to compare.

Two names of the door are modules:

- ``baselines``   the other ways to make a model from several owners' text
- ``jobs``        the loop, for rooms that have other weights to train
"""

from moiety.train import baselines, jobs
from moiety.train.anchor import import_anchor, new_anchor
from moiety.train.config import TrainConfig
from moiety.train.expert import ExpertPlan, train_expert
from moiety.train.presets import PRESETS

__all__ = [
    "PRESETS",
    "ExpertPlan",
    "TrainConfig",
    "baselines",
    "import_anchor",
    "jobs",
    "new_anchor",
    "train_expert",
]

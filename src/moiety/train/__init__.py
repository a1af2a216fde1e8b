"""Changing weights: anchors from public text, experts from an owner's."""

from moiety.train.anchor import MadeAnchor, import_anchor, new_anchor
from moiety.train.config import TrainConfig, resolve_config
from moiety.train.presets import PRESETS
from moiety.train.sample import Sources

__all__ = [
    "PRESETS",
    "MadeAnchor",
    "Sources",
    "TrainConfig",
    "import_anchor",
    "new_anchor",
    "resolve_config",
]

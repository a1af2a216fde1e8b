"""The other ways to make a model from several owners' text. Each is a function; all can be resumed.

- ``continue_dense``   an owner's dense model: for soups, BTM, BTX, prompt routing
- ``train_joint``      one mixture trained on everybody's text together
- ``train_btx``        dense models made a mixture, then trained on public text
- ``train_recipe``     the paper's own pair, and ``merge_recipe`` what it makes of several
"""

from moiety.train.dense import Part, continue_dense
from moiety.train.joint import JointPart, train_btx, train_joint
from moiety.train.recipe import RowStart, merge_recipe, train_recipe
from moiety.train.trained import Trained, TrainedPaper, read_trained

__all__ = [
    "JointPart",
    "Part",
    "RowStart",
    "Trained",
    "TrainedPaper",
    "continue_dense",
    "merge_recipe",
    "read_trained",
    "train_btx",
    "train_joint",
    "train_recipe",
]

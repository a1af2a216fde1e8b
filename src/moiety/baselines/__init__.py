"""Other ways to use several owners' models, and what each way costs: arithmetic, no training.

The door is three modules and two names:

- ``likelihood``  branch-train-merge, prompt routing, weights from a prompt's likelihood
- ``soups``       weighted means of weights
- ``costs``       FLOPs and parameters from sizes alone
- ``load_joint``, ``score``
"""

from moiety.baselines import costs, likelihood, soups
from moiety.baselines.scoring import load_joint, score

__all__ = ["costs", "likelihood", "load_joint", "score", "soups"]

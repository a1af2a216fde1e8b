"""Moiety: train experts apart, merge them into one model, withdraw any of them exactly.

>>> import moiety
>>> model = moiety.load("release/")                        # doctest: +SKIP
>>> with model.without("hospital"):                        # doctest: +SKIP
...     print(model.generate("The patient"))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moiety.model import Mixture

__all__ = ["load"]


def load(release: str | Path, *, device: str = "cpu") -> Mixture:
    """A release as a model with ``.generate``, ``.only(...)`` and ``.without(...)``.

    Raises:
        TrustError: the release does not hold together.
    """
    from moiety.merge import load_release

    return load_release(Path(release), device=device)

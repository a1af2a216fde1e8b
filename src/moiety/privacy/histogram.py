"""How often each token occurs in the records, told privately.

Dimensions: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[Any]


def noisy_histogram(
    records: Iterable[Tokens],
    vocabulary: int,
    *,
    clip_norm: float,
    deviation: float,
    generator: np.random.Generator,
) -> Floats:
    """The sum of the records' counts, each clipped in length, with Gaussian noise on every entry.

    ``records`` yields the tokens of one record at a time. One record more or less changes the sum,
    before the noise, by at most ``clip_norm`` in Euclidean length.

    Returns:
        ``[V]``; entries may be negative.
    """
    sum_V = np.zeros(vocabulary)
    for tokens in records:
        present, counts = np.unique(tokens, return_counts=True)
        length = float(np.linalg.norm(counts))
        if length > 0:
            sum_V[present] += counts * min(1.0, clip_norm / length)
    return sum_V + deviation * generator.standard_normal(vocabulary)


def histogram_length(tokens: Tokens) -> float:
    """Euclidean length of one record's counts: what ``clip_norm`` bounds."""
    return float(np.linalg.norm(np.unique(tokens, return_counts=True)[1]))

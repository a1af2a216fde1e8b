"""How sure an attack's numbers are: 95 % intervals of shares, means and pairs of groups.

Legend: N document, M member, O outsider (not a member), S sample of the bootstrap.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moiety.bundle import audits

Floats = NDArray[np.float64]

SAMPLES: Final = 1000
_TAIL: Final = 0.025
_BLOCK_NUMBERS: Final = 4_000_000


def wilson(hits: int, count: int) -> audits.Estimate:
    """A share and its Wilson interval, which is honest for shares near zero and one.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    z = float(stats.norm.isf(_TAIL))
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5
    # At the ends the formula gives the share itself, but for rounding.
    low = 0.0 if hits == 0 else middle - half
    return audits.Estimate(value=share, low=low, high=1.0 if hits == count else middle + half)


def clopper_pearson(hits: int, count: int) -> audits.Estimate:
    """A share and its exact interval, which is never too short.

    Source: Clopper and Pearson 1934, The use of confidence or fiducial limits.
    """
    low = 0.0 if hits == 0 else float(stats.beta.ppf(_TAIL, hits, count - hits + 1))
    high = 1.0 if hits == count else float(stats.beta.isf(_TAIL, hits + 1, count - hits))
    return audits.Estimate(value=hits / count, low=low, high=high)


def mean_interval(values_N: Floats, seed: int) -> audits.Estimate:
    """A mean and its percentile interval, documents drawn again.

    Give it differences of two views on the same documents, and the interval is a paired one.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    generator = np.random.default_rng(seed)
    count = values_N.size
    parts = [draws(generator, count, size) @ values_N / count for size in _blocks(SAMPLES, count)]
    return _estimate(float(values_N.mean()), np.concatenate(parts))


def difference_interval(differences_N: Floats, seed: int) -> audits.Estimate:
    """The mean of differences, each -1, 0 or 1, and its interval, documents drawn again.

    Where all are equal the bootstrap's interval has no width, however few they are. There it is as
    wide as what may never have been seen: a share ``unseen_share`` of documents that differ from
    those as far as can be.
    """
    found = mean_interval(differences_N, seed)
    if np.ptp(differences_N) > 0:
        return found
    unseen = unseen_share(differences_N.size)
    low, high = found.value - unseen * (1 + found.value), found.value + unseen * (1 - found.value)
    return audits.Estimate(value=found.value, low=low, high=high)


def unseen_share(count: int) -> float:
    """How large a share may be of which nothing was seen among so many, at either end of 95 %.

    The exact interval's end: Wilson's is shorter than it says where fewer than 50 were looked at.
    """
    return clopper_pearson(0, count).high


def pairs_interval(kernel_MO: NDArray[np.float32], seed: int) -> audits.Estimate:
    """The mean of a number that each pair of a member and an outsider has, and its interval.

    Members and outsiders are drawn again apart from each other. An AUC is such a mean; so is the
    difference of two on the same documents.
    """
    generator = np.random.default_rng(seed)
    members, outsiders = kernel_MO.shape
    parts = []
    for size in _blocks(SAMPLES, members + outsiders):
        drawn_SM = draws(generator, members, size).astype(np.float32)
        drawn_SO = draws(generator, outsiders, size)
        parts.append(((drawn_SM @ kernel_MO) * drawn_SO).sum(axis=1) / (members * outsiders))
    return _estimate(float(kernel_MO.mean(dtype=np.float64)), np.concatenate(parts))


def draws(generator: np.random.Generator, count: int, samples: int) -> Floats:
    """How often each of ``count`` is drawn in a bootstrap, ``[S, count]``."""
    return generator.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)


def _blocks(samples: int, count: int) -> list[int]:
    block = max(1, _BLOCK_NUMBERS // count)
    return [min(block, samples - at) for at in range(0, samples, block)]


def _estimate(value: float, values_S: Floats) -> audits.Estimate:
    low, high = np.quantile(values_S, [_TAIL, 1 - _TAIL])
    return audits.Estimate(value=value, low=float(low), high=float(high))

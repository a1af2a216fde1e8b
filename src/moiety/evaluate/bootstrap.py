"""How sure we are: a bootstrap over documents, paired across models.

Legend: M model, D document, T text, S sample of the bootstrap.

A text is scored document by document, every model on the same documents. Documents, not tokens,
are drawn again with replacement, because tokens of one document resemble each other. One draw
serves all models, so a difference between two models does not carry the noise of which documents
happened to be drawn: what makes a hard document hard is subtracted from both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moiety.errors import DataError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps bits per byte ``[..., T, M]`` to ``[..., anything]``, so one call serves all samples."""

_BLOCK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class TextScores:
    """One text scored by every model: ``nats`` ``[M, D]`` and ``document_bytes`` ``[D]``.

    With tokens in the place of bytes, what follows from it is bits per token.
    """

    nats: Floats
    document_bytes: Floats

    def __post_init__(self) -> None:
        if self.nats.ndim != 2 or self.nats.shape[1:] != self.document_bytes.shape:
            raise DataError(
                f"scores of shape {self.nats.shape} for {self.document_bytes.shape} documents"
            )
        if self.document_bytes.size == 0 or not (self.document_bytes > 0).all():
            raise DataError("a text needs at least one document, and no document may be empty")
        if not np.isfinite(self.nats).all():
            raise DataError("a score is not a finite number")


@dataclass(frozen=True)
class Measures:
    """What an evaluation says in numbers, each with the ends of its interval."""

    bits_per_byte: dict[str, dict[str, float]]
    bits_per_byte_interval: dict[str, dict[str, tuple[float, float]]]
    gap_closed: float | None
    gap_closed_interval: tuple[float, float] | None
    removal: dict[str, float]
    removal_interval: dict[str, tuple[float, float]]


def bits_per_byte(nats_MD: Floats, bytes_D: Floats) -> Floats:
    """Total nats over total bytes, in bits: long documents count for more. Returns ``[M]``."""
    ratio_M: Floats = nats_MD.sum(axis=-1) / bytes_D.sum() / math.log(2)
    return ratio_M


def replicates(scores: Sequence[TextScores], samples: int = 1000, seed: int = 0) -> Floats:
    """Bits per byte of ``samples`` redrawn collections. Returns ``[S, T, M]``.

    Every text keeps its number of documents; texts are drawn independently of each other.
    """
    drawn = [
        _redraw(text, samples, np.random.default_rng([seed, number]))
        for number, text in enumerate(scores)
    ]
    return np.stack(drawn, axis=1)


def _redraw(text: TextScores, samples: int, generator: np.random.Generator) -> Floats:
    num_documents = text.document_bytes.size
    share_D = np.full(num_documents, 1.0 / num_documents)
    block = max(1, _BLOCK_NUMBERS // num_documents)
    parts = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        # How often each document is drawn; a matrix product then sums every sample at once.
        counts_SD = generator.multinomial(num_documents, share_D, size=size).astype(np.float64)
        bytes_S = counts_SD @ text.document_bytes
        parts.append((counts_SD @ text.nats.T) / bytes_S[:, None] / math.log(2))
    return np.concatenate(parts)


def interval(
    statistic: Statistic,
    scores: Sequence[TextScores],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Floats, Floats]:
    """The percentile interval of any statistic of bits per byte ``[..., T, M]``.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    return _percentiles(statistic(replicates(scores, samples, seed)), level)


def _percentiles(values: Floats, level: float) -> tuple[Floats, Floats]:
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends[0], ends[1]


def gap_closed(models: Sequence[str], texts: Sequence[str]) -> Statistic:
    """Of what the right expert could win over the anchor, the share that the whole mixture wins.

    Means are over texts. The oracle on an owner's text is the anchor with that owner's expert; on
    a text that nobody owns it is the anchor. NaN where the oracle wins nothing.
    """
    column = {name: index for index, name in enumerate(models)}
    oracle = [column.get(f"anchor+{text}", column["anchor"]) for text in texts]

    def statistic(bits: Floats) -> Floats:
        anchor = bits[..., column["anchor"]].mean(axis=-1)
        whole = bits[..., column["all"]].mean(axis=-1)
        best = bits[..., np.arange(len(texts)), oracle].mean(axis=-1)
        won = np.where(anchor > best, anchor - best, np.nan)
        share: Floats = (anchor - whole) / won
        return share

    return statistic


def removal_price(models: Sequence[str], texts: Sequence[str], owner: str) -> Statistic:
    """Bits per byte on an owner's text when only its expert is gone, minus the anchor's.

    Zero: the others left the text to the anchor, as if nobody had ever owned it. Above zero: an
    expert that should have declined the text did not.
    """
    row = list(texts).index(owner)
    without, anchor = list(models).index(f"all-{owner}"), list(models).index("anchor")

    def statistic(bits: Floats) -> Floats:
        price: Floats = bits[..., row, without] - bits[..., row, anchor]
        return price

    return statistic


def removable(models: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The owners whose price of removal can be told: their text is here, and ``all-NAME`` ran."""
    return [text for text in texts if f"all-{text}" in models and "anchor" in models]


def measure(
    models: Sequence[str],
    scores: Mapping[str, TextScores],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Measures:
    """Every number of an evaluation with its 95 % interval, all from the same redrawn documents."""
    texts = list(scores)
    point_TM = np.stack([bits_per_byte(text.nats, text.document_bytes) for text in scores.values()])
    drawn_STM = replicates(list(scores.values()), samples, seed)
    low_TM, high_TM = _percentiles(drawn_STM, 0.95)
    removal, removal_interval = {}, {}
    for owner in removable(models, texts):
        price = removal_price(models, texts, owner)
        removal[owner] = float(price(point_TM))
        removal_interval[owner] = _ends(price(drawn_STM))
    gap, gap_interval = _gap(models, texts, point_TM, drawn_STM)
    return Measures(
        bits_per_byte=_by_name(models, texts, point_TM),
        bits_per_byte_interval={
            model: {
                text: (float(low_TM[t, m]), float(high_TM[t, m])) for t, text in enumerate(texts)
            }
            for m, model in enumerate(models)
        },
        gap_closed=gap,
        gap_closed_interval=gap_interval,
        removal=removal,
        removal_interval=removal_interval,
    )


def _by_name(
    models: Sequence[str], texts: Sequence[str], values_TM: Floats
) -> dict[str, dict[str, float]]:
    return {
        model: {text: float(values_TM[t, m]) for t, text in enumerate(texts)}
        for m, model in enumerate(models)
    }


def _gap(
    models: Sequence[str], texts: Sequence[str], point_TM: Floats, drawn_STM: Floats
) -> tuple[float | None, tuple[float, float] | None]:
    if "anchor" not in models or "all" not in models:
        return None, None
    statistic = gap_closed(models, texts)
    value, drawn_S = float(statistic(point_TM)), statistic(drawn_STM)
    if math.isnan(value):
        return None, None
    # A sample in which the right experts win nothing has no share to tell.
    return value, None if np.isnan(drawn_S).any() else _ends(drawn_S)


def _ends(drawn_S: Floats) -> tuple[float, float]:
    low, high = _percentiles(drawn_S, 0.95)
    return float(low), float(high)

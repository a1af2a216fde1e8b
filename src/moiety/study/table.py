"""From scores to the table: bits per byte, gaps and prices, with intervals.

Legend: S sample of the bootstrap, X text, Z seed, R row, D document, W window, T target position.

Every row is measured on the same documents under every seed. A value is the mean over seeds; its
interval comes from documents drawn again, one draw for all rows and seeds, so that differences do
not carry the noise of which documents were drawn. How far seeds differ is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moiety.evaluate import bootstrap
from moiety.study.methods import Row, rows
from moiety.study.paper import Number
from moiety.study.places import Study
from moiety.study.scores import FIRST_TOKENS, Floats, Sample, load_nats, load_sample

SAMPLES = 1000
ANCHOR, ORACLE = "anchor", "oracle"


@dataclass(frozen=True)
class Measured:
    """Bits per byte of every row: under each seed ``[Z, X, R]``, and redrawn ``[S, X, R]``."""

    rows: tuple[str, ...]
    texts: tuple[str, ...]
    by_seed: Floats
    drawn: Floats

    def tell(self, statistic: Callable[[Floats], Floats]) -> Number | None:
        """A statistic of bits per byte ``[..., X, R]``; None where it is not a number.

        The value is the statistic of the mean over seeds, not the mean of the seeds' statistics.
        """
        value = float(statistic(self.by_seed.mean(axis=0)))
        drawn_S = statistic(self.drawn)
        if np.isnan(value) or np.isnan(drawn_S).any():
            return None
        low, high = np.quantile(drawn_S, [0.025, 0.975])
        seeds_Z = statistic(self.by_seed)
        told = () if np.isnan(seeds_Z).any() else tuple(seeds_Z.tolist())
        return Number(value=value, interval=(float(low), float(high)), by_seed=told)

    def on(self, row: str, text: str) -> Number:
        """Bits per byte of a row on a text."""
        return self._sure(lambda bits: bits[..., self._text(text), self._row(row)])

    def difference(self, row: str, text: str, other: str = ANCHOR) -> Number:
        """Bits per byte of a row on a text, minus another's: below zero is better."""
        x, r, o = self._text(text), self._row(row), self._row(other)
        return self._sure(lambda bits: bits[..., x, r] - bits[..., x, o])

    def mean(self, row: str) -> Number:
        """Mean bits per byte over the texts."""
        return self._sure(lambda bits: bits[..., self._row(row)].mean(axis=-1))

    def ratio(self, row: str, other: str) -> Number:
        """Mean bits per byte of a row over another's, minus one."""
        r, o = self._row(row), self._row(other)
        return self._sure(lambda bits: bits[..., r].mean(-1) / bits[..., o].mean(-1) - 1)

    def gap_closed(self, row: str) -> Number | None:
        """(anchor - row) / (anchor - oracle) in mean bits per byte; None: the oracle wins nothing.

        None, too, where the study has no oracle.
        """
        if ORACLE not in self.rows:
            return None
        r, a, o = map(self._row, (row, ANCHOR, ORACLE))

        def statistic(bits: Floats) -> Floats:
            mean = bits.mean(axis=-2)
            won = mean[..., a] - mean[..., o]
            share: Floats = (mean[..., a] - mean[..., r]) / np.where(won > 0, won, np.nan)
            return share

        return self.tell(statistic)

    def _sure(self, statistic: Callable[[Floats], Floats]) -> Number:
        value = self.tell(statistic)
        assert value is not None, "scores are finite"
        return value

    def _row(self, name: str) -> int:
        return self.rows.index(name)

    def _text(self, name: str) -> int:
        return self.texts.index(name)


@dataclass(frozen=True)
class Scores:
    """Every row's nats of every text, read from the cells of a study."""

    study: Study

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table; the anchor is always among them."""
        plan = self.study.plan
        return rows((ANCHOR, *plan.paper.methods), plan.owners, plan.top_ks())

    @cached_property
    def samples(self) -> dict[str, Sample]:
        """The windows of every text."""
        return {text: load_sample(self.study.sample(text)) for text in self.study.plan.texts}

    def measure(self, first: int | None = None) -> Measured:
        """Bits per byte of whole documents, or of the first tokens of each."""
        seeds, texts = self.study.plan.paper.seeds, self.study.plan.texts
        scores = [self._text_scores(text, first) for text in texts]
        point_XC = np.stack([bootstrap.bits_per_byte(s.nats, s.document_bytes) for s in scores])
        drawn_SXC = bootstrap.replicates(scores, SAMPLES)
        by_seed_XZR = point_XC.reshape(len(texts), len(seeds), -1)
        drawn_SXZR = drawn_SXC.reshape(SAMPLES, len(texts), len(seeds), -1)
        names = tuple(row.name for row in self.rows)
        return Measured(names, texts, by_seed_XZR.swapaxes(0, 1), drawn_SXZR.mean(axis=2))

    def _text_scores(self, text: str, first: int | None) -> bootstrap.TextScores:
        """Every row under every seed, seeds slowest, ``[C, D]``."""
        seeds, sample = self.study.plan.paper.seeds, self.samples[text]
        nats_CD = [self._documents(text, seed, row)[first] for seed in seeds for row in self.rows]
        return bootstrap.TextScores(np.stack(nats_CD), sample.document_bytes(first))

    @cached_property
    def _known(self) -> dict[tuple[str, int, str], dict[int | None, Floats]]:
        return {}

    def _documents(self, text: str, seed: int, row: Row) -> dict[int | None, Floats]:
        """Nats of each document ``[D]``, whole and of its first tokens; worked out once."""
        key = (text, seed, row.name)
        if key not in self._known:
            sample = self.samples[text]
            cells = [self.study.cell(seed, model, text) for model in row.models(text)]
            nats_MWT = np.stack([load_nats(cell, sample) for cell in cells])
            nats_WT = row.combine(nats_MWT, sample.counted)
            regions = (None, *FIRST_TOKENS)
            self._known[key] = {first: sample.document_nats(nats_WT, first) for first in regions}
        return self._known[key]

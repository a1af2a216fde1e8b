"""Poisson sampling: every record takes part in a step, or not, by a coin of its own.

Accountants assume exactly this. A shuffled epoch or a batch of a fixed size is another mechanism,
with another epsilon. So a step may draw more records than expected, fewer, or none.

Dimensions: N records, R records drawn, B windows drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moiety.privacy.seeds import Secret

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """Windows of some records, those of one record side by side.

    Shapes: ``windows`` and ``records`` int64 [B]; ``records`` is sorted.
    """

    windows: Longs
    records: Longs

    def parts(self, most_windows: int) -> Iterator[Draw]:
        """The same in micro-batches that never split a record (0: all at once; none: nothing)."""
        begin, limit = 0, most_windows or len(self.windows)
        borders = [*np.flatnonzero(np.diff(self.records)) + 1, len(self.records)]
        for at, border in enumerate(borders):
            last = at + 1 == len(borders)
            if border > begin and (last or borders[at + 1] - begin > limit):
                yield Draw(self.windows[begin:border], self.records[begin:border])
                begin = border


class RecordSampler:
    """Draws records, and of each at most so many windows, from a step's number and a secret.

    Record ``r`` has the windows ``first_N[r]`` to ``first_N[r] + count_N[r]``. Which of them take
    part is decided anew whenever the record is drawn: what bounds its influence is the clip.
    """

    def __init__(
        self, first_N: Longs, count_N: Longs, *, rate: float, most_windows: int, secret: Secret
    ) -> None:
        self._first_N, self._count_N = first_N, count_N
        self._rate, self._most_windows, self._secret = rate, most_windows, secret

    def draw(self, step: int) -> Draw:
        """The windows of one step."""
        coins_N = self._secret.generator("records", step).random(len(self._count_N))
        generator = self._secret.generator("windows", step)
        windows, records = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for record in np.flatnonzero(coins_N < self._rate):
            count = int(self._count_N[record])
            held = min(count, self._most_windows)
            inside = np.sort(generator.choice(count, size=held, replace=False))
            windows.append(self._first_N[record] + inside)
            records.append(np.full(held, record, dtype=np.int64))
        return Draw(np.concatenate(windows), np.concatenate(records))

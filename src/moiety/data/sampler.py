"""The order in which windows are drawn: each once an epoch; one number is all the state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moiety.errors import DataError


class WindowSampler:
    """Sample ``i`` is ``permutation(epoch = i // n)[i % n]``, so resuming needs only ``i``."""

    def __init__(self, num_windows: int, seed: int) -> None:
        if num_windows < 1:
            raise DataError("no window to draw from", remedy="give more text")
        self.num_windows = num_windows
        self.seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def indices(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """The windows of samples ``start`` to ``start + count``, across epochs.

        Shapes: int64 [count].
        """
        parts = [np.empty(0, dtype=np.int64)]
        while count > 0:
            epoch, offset = divmod(start, self.num_windows)
            part = self._permutation(epoch)[offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = generator.permutation(self.num_windows).astype(np.int64)
            self._epoch = epoch
        return self._order

"""What a text owes to whom: each owner's Shapley value, beside the cheap routing share.

Legend: S set of owners, N owner, E expert (the anchor first), B window, T position.

The worth of a set of owners is how many bits fewer the text costs with exactly their experts than
with the anchor alone. An owner's Shapley value is what it adds to that on average, over all orders
in which the owners could have come: the only division that adds up to the worth of all, gives
nothing to who adds nothing, and the same to who adds the same. Up to ``EXACT_OWNERS`` owners every
set is scored; beyond, orders are drawn, each with its reverse, and the error is told.

Source: Shapley 1953; drawn orders: Castro, Gomez, Tejada 2009; an order and its reverse: Mitchell
et al. 2022, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from operator import or_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from moiety.data import PackedText, Sources
from moiety.errors import ConfigError
from moiety.evaluate.matrix import Watcher, check_tokens, pack_documents
from moiety.merge import load_release
from moiety.model import Mixture

EXACT_OWNERS = 10
"""Up to here all sets are scored: 1,024 of them."""

_ROWS = 16
"""Windows times sets in one forward pass."""

Floats = NDArray[np.float64]
Worth = Callable[[Sequence[int]], Floats]
"""Sets, each a number whose bit n stands for owner n, to what they are worth, ``[S]``."""


@dataclass(frozen=True)
class Attribution:
    """Per owner, in the roster's order; worths are in bits per byte of the text."""

    owners: tuple[str, ...]
    shapley: tuple[float, ...]
    error: tuple[float, ...] | None
    """Standard error where orders were drawn; None: exact."""
    routing: tuple[float, ...]
    """Share of the routing weight; what is missing to one went to the anchor."""
    together: float
    agreement: float | None
    """Rank correlation (Spearman) of the two; None with fewer than three owners, or no ranks."""
    sets: int
    documents: int
    tokens: int
    bytes: int

    def table(self) -> Table:
        """For people."""
        table = Table(box=box.SIMPLE_HEAD)
        for title in ("owner", "worth, bits per byte", "routing share"):
            table.add_column(title, justify="left" if title == "owner" else "right")
        for owner, worth, error, share in self._rows():
            told = f"{worth:+.4f}" if error is None else f"{worth:+.4f} ± {1.96 * error:.4f}"
            table.add_row(Text(owner), told, f"{share:.0%}")
        table.add_row("together", f"{self.together:+.4f}", f"{sum(self.routing):.0%}", style="bold")
        return table

    def lines(self) -> tuple[str, ...]:
        """What the table rests on."""
        how = "every set scored" if self.error is None else "drawn orders, ± 95 %"
        agreement = "cannot be told" if self.agreement is None else f"{self.agreement:+.2f}"
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens, {self.bytes:,} bytes; "
            f"{self.sets:,} sets of owners ({how})",
            f"rank correlation of worth and routing share: {agreement}",
        )

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self) | {
            "owners": {
                owner: {"shapley": worth, "standard_error": error, "routing": share}
                for owner, worth, error, share in self._rows()
            }
        }

    def _rows(self) -> Iterator[tuple[str, float, float | None, float]]:
        errors = self.error or [None] * len(self.owners)
        return zip(self.owners, self.shapley, errors, self.routing, strict=True)


def attribute(
    release: Path,
    sources: Sources,
    *,
    max_tokens: int = 4096,
    window_tokens: int = 256,
    orders: int = 100,
    device: str = "cpu",
    seed: int = 0,
    watch: Watcher | None = None,
) -> Attribution:
    """Divides what a release gains over the anchor on a text among its owners.

    ``orders`` are drawn where there are too many owners to score every set.

    Raises:
        ConfigError: no owner in the release, too few orders to tell an error, no tokens.
        DataError: a text that cannot be read. TrustError: a release that does not hold.
    """
    check_tokens(max_tokens)
    if orders < 4:
        raise ConfigError("at least four orders are needed to tell an error", where="orders")
    mixture = load_release(release, device=device)
    owners = mixture.names[1:]
    if not owners:
        raise ConfigError("a release without owners owes nobody anything", where=release)
    with TemporaryDirectory() as scratch:
        text = pack_documents(release, mixture, sources, Path(scratch) / "text", window_tokens)
        scorer = _Scorer(mixture, text, max_tokens, seed, watch)
        share_N, error = scorer.routing(), None
        if len(owners) <= EXACT_OWNERS:
            values = shapley(scorer.worth(range(2 ** len(owners))))
        else:
            values, error = drawn_shapley(scorer.worth, len(owners), orders, seed)
        everybody = 2 ** len(owners) - 1
        return Attribution(
            owners=tuple(owners),
            shapley=tuple(values.tolist()),
            error=None if error is None else tuple(error.tolist()),
            routing=tuple(share_N.tolist()),
            together=float(scorer.worth([everybody])[0]),
            agreement=rank_correlation(values, share_N),
            sets=len(scorer.nats),
            documents=scorer.documents,
            tokens=scorer.tokens,
            bytes=scorer.bytes,
        )


def shapley(worth_S: Floats) -> Floats:
    """Exact values ``[N]`` from the worth of all ``2 ** N`` sets; bit n of an index is owner n."""
    count = int(worth_S.size).bit_length() - 1
    sets_S = np.arange(worth_S.size)
    size_S = sum((sets_S >> owner) & 1 for owner in range(count))
    values = []
    for owner in range(count):
        without_S = sets_S[(sets_S >> owner) & 1 == 0]
        added_S = worth_S[without_S | (1 << owner)] - worth_S[without_S]
        orders_S = [count * math.comb(count - 1, int(size)) for size in np.take(size_S, without_S)]
        values.append(float((added_S / np.array(orders_S)).sum()))
    return np.array(values)


def drawn_shapley(worth: Worth, count: int, orders: int, seed: int) -> tuple[Floats, Floats]:
    """Estimated values and their standard errors, both ``[N]``, from drawn orders in pairs."""
    dice = np.random.default_rng(seed)
    halves = [dice.permutation(count).tolist() for _ in range(-(-orders // 2))]
    both = [way for order in halves for way in (order, order[::-1])]
    # Python's numbers: a set of more than 63 owners does not fit another.
    sets = [list(accumulate((1 << owner for owner in order), or_, initial=0)) for order in both]
    worth_OS = worth([number for row in sets for number in row]).reshape(len(both), count + 1)
    added_ON = np.empty((len(both), count))
    np.put_along_axis(added_ON, np.array(both), np.diff(worth_OS, axis=1), axis=1)
    pairs = added_ON.reshape(-1, 2, count).mean(axis=1)
    return pairs.mean(axis=0), pairs.std(axis=0, ddof=1) / math.sqrt(len(pairs))


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Spearman's; ties get their mean rank. None where there is nothing to rank."""
    if len(one) < 3:
        return None
    ours, theirs = _ranks(one), _ranks(other)
    if 0 in (float(ours.std()), float(theirs.std())):
        return None
    return float(np.corrcoef(ours, theirs)[0, 1])


def _ranks(values: Floats) -> Floats:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    ranks: Floats = (last - (count - 1) / 2)[place]
    return ranks


class _Scorer:
    """Nats of the text under sets of owners; each set is scored once."""

    def __init__(
        self,
        mixture: Mixture,
        text: PackedText,
        max_tokens: int,
        seed: int,
        watch: Watcher | None,
    ) -> None:
        self.mixture, self.text, self.watch = mixture, text, watch
        self.max_tokens, self.seed = max_tokens, seed
        self.nats: dict[int, float] = {}
        self.documents = self.tokens = self.bytes = 0

    def worth(self, sets: Sequence[int]) -> Floats:
        """Bits per byte saved by each set."""
        missing = sorted({0, *sets} - set(self.nats))
        size = max(1, _ROWS // min(_ROWS, self.text.num_windows))
        for at in range(0, len(missing), size):
            self._score(missing[at : at + size])
            if self.watch is not None:
                self.watch("sets of owners", min(at + size, len(missing)), len(missing))
        saved = [self.nats[0] - self.nats[number] for number in sets]
        return np.array(saved) / math.log(2) / self.bytes

    def routing(self) -> Floats:
        """Each owner's share of the weight when all may take part, ``[N]``."""
        everybody = 2 ** (len(self.mixture.names) - 1) - 1
        with self.mixture.watching() as shares_E:
            self._score([everybody])
        share_N: Floats = (shares_E / shares_E.sum())[1:].numpy()
        return share_N

    def _score(self, sets: Sequence[int]) -> None:
        names = self.mixture.names[1:]
        chosen = [[name for bit, name in enumerate(names) if s >> bit & 1] for s in sets]

        def score(windows: Any) -> NDArray[np.float32]:
            tokens_BT, documents_BT = map(torch.from_numpy, (windows.tokens, windows.documents))
            nats = self.mixture.score(
                tokens_BT.repeat(len(sets), 1),
                documents_BT.repeat(len(sets), 1),
                experts=[names for names in chosen for _ in range(len(tokens_BT))],
            )
            per_set: NDArray[np.float32] = nats.float().cpu().numpy()
            return per_set.reshape(len(sets), *windows.tokens[:, 1:].shape)

        found = self.text.judge(
            score,
            max_tokens=self.max_tokens,
            seed=self.seed,
            batch_windows=max(1, _ROWS // len(sets)),
        )
        self.nats.update(zip(sets, found.nats.sum(axis=-1).tolist(), strict=True))
        self.documents, self.tokens = len(found.documents), found.tokens
        self.bytes = int(found.bytes.sum())

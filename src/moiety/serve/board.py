"""The requests that run, each at its place, and how much of each the next step takes.

Legend: S slot, T token of the prompt.

A step is one token of every request that decodes, and as many tokens of prompts as the rest of its
budget holds: a long prompt comes in pieces, so that running answers go on. Half of that rest is the
eldest prompt's, so that none waits for ever; what is left goes to the shortest, so that a short one
does not wait for a long one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moiety.serve.answers import Answer
from moiety.serve.following import Trail
from moiety.serve.jobs import Job
from moiety.serve.places import Places


@dataclass(eq=False)
class Row:
    """A running request. When the prompt has been read, all ``tokens`` but the last are ``fed``.

    ``tokens`` are the prompt's and the answer's, of which ``fed`` have keys and values.
    ``weights_TS`` are the router's for the prompt, ``trail`` the evidence after all that was
    routed. ``place`` is minus one before it has one.
    """

    job: Job
    answer: Answer
    tokens: list[int]
    trail: Trail
    weights_TS: Tensor
    dice: torch.Generator | None
    begun: float
    fed: int = 0
    place: int = -1

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def unread(self) -> int:
        """Tokens of the prompt that have no keys and values yet."""
        return max(0, len(self.job.prompt) - self.fed)


@dataclass(frozen=True)
class Feed:
    """What a step takes of a request: its tokens from ``begin`` to ``end``."""

    row: Row
    begin: int
    end: int


class Board:
    """Who sits at which place: those that decode first, then those whose prompt is being read."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.rows: list[Row] = []
        self.decoding = 0

    def enter(self, row: Row) -> None:
        """Takes the next place."""
        row.place = len(self.rows)
        self.rows.append(row)

    def decodes(self, row: Row) -> None:
        """The prompt has been read: sits with those that decode."""
        first = self.rows[self.decoding]
        if first is not row:
            kept = self._places.read(row.place, 0, row.fed)
            self._places.clear(row.place, row.fed)
            self._fill(row.place, self.decoding)
            self._places.write(self.decoding, 0, *kept)
            self._sit(row, self.decoding)
        self.decoding += 1

    def leave(self, row: Row) -> None:
        """Frees a place; others close the gap."""
        gap = row.place
        self._places.clear(gap, row.fed)
        if gap < self.decoding:
            self.decoding -= 1
            self._fill(gap, self.decoding)
            gap = self.decoding
        self._fill(gap, len(self.rows) - 1)
        self.rows.pop()

    def leaving(self, wanted: Callable[[Row], bool]) -> list[Row]:
        """Frees the places of those wanted, and returns them."""
        found = [row for row in self.rows if wanted(row)]
        for row in found:
            self.leave(row)
        return found

    def feeds(self, budget: int) -> list[Feed]:
        """What the next step takes: about ``budget`` tokens, first one of each that decodes."""
        feeds = [Feed(row, row.fed, row.fed + 1) for row in self.rows[: self.decoding]]
        reading = sorted(self.rows[self.decoding :], key=lambda row: row.begun)
        sizes = _shares([row.unread for row in reading], max(1, budget - len(feeds)))
        pairs = zip(reading, sizes, strict=True)
        return feeds + [Feed(row, row.fed, row.fed + size) for row, size in pairs if size]

    def _fill(self, gap: int, source: int) -> None:
        if gap != source:
            row = self.rows[source]
            self._places.move(source, gap, row.fed)
            self._sit(row, gap)

    def _sit(self, row: Row, place: int) -> None:
        self.rows[place], row.place = row, place


def _shares(unread: list[int], budget: int) -> list[int]:
    """How many tokens of each prompt are read next; the eldest comes first."""
    shares = [0] * len(unread)
    if not unread:
        return shares
    shares[0] = min(unread[0], (budget + 1) // 2)
    left = budget - shares[0]
    for row in sorted(range(len(unread)), key=lambda row: unread[row] - shares[row]):
        more = min(unread[row] - shares[row], left)
        shares[row] += more
        left -= more
    return shares

"""Which documents are attacked: drawn by record, so that nobody counts more for having more text.

Legend: N document, T token.

Every record has a place by the hash of its name, and those with the smallest are taken: the order
of the files does not matter, each record is as likely as any other, and no more is held in memory
than is taken (and eight bytes of every record seen, to count them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moiety.data import tokenizer as encoding
from moiety.errors import DataError

MEMBER_MIN_TOKENS: Final = 16
"""A shorter text says too little to be told apart by."""

_BUFFER_RECORDS: Final = 2**20


@dataclass(frozen=True)
class Chosen:
    """Documents cut to one length: ``tokens`` int64 [N, T], and how many records were seen.

    Fewer documents than were asked for are all there are that are long enough.
    """

    tokens: NDArray[np.int64]
    records: int


@dataclass(frozen=True)
class Passage:
    """The beginning of a document: ``tokens`` int64 [T], and the bytes of exactly this text."""

    tokens: NDArray[np.int64]
    text: bytes


def choose_documents(
    documents: Iterable[encoding.Document],
    encoder: encoding.PlainEncoder,
    *,
    count: int,
    tokens: int,
    seed: int,
) -> Chosen:
    """Draws ``count`` records, one document of each, and ``tokens`` tokens anywhere in it.

    Raises:
        DataError: no document is long enough.
    """
    drawn = _draw(documents, encoder, count, tokens, seed)
    rows = []
    for place, ids in drawn.kept:
        at = _hash(seed, "offset", str(place)) % (ids.size - tokens + 1)
        rows.append(ids[at : at + tokens])
    return Chosen(np.stack(rows).astype(np.int64), drawn.records)


def choose_passages(
    documents: Iterable[encoding.Document],
    encoder: encoding.PlainEncoder,
    tokenizer: Tokenizer,
    *,
    count: int,
    tokens: int,
    seed: int,
) -> tuple[Passage, ...]:
    """Draws ``count`` records, one document of each, and takes its first ``tokens`` tokens.

    Documents of fewer are taken whole, down to ``MEMBER_MIN_TOKENS``.

    Raises:
        DataError: no document is long enough.
    """
    drawn = _draw(documents, encoder, count, min(tokens, MEMBER_MIN_TOKENS), seed)
    passages = []
    for _place, ids in drawn.kept:
        first = ids[:tokens].astype(np.int64)
        text = tokenizer.decode(first.tolist(), skip_special_tokens=False)
        passages.append(Passage(first, text.encode("utf-8")))
    return tuple(passages)


@dataclass(frozen=True)
class _Drawn:
    """The documents that were drawn, each with its hash, and how many records there were."""

    kept: list[tuple[int, NDArray[np.integer]]]
    records: int


def _draw(
    documents: Iterable[encoding.Document],
    encoder: encoding.PlainEncoder,
    count: int,
    min_tokens: int,
    seed: int,
) -> _Drawn:
    """The ``count`` records of the smallest hashes, of each the document of the smallest hash."""
    seen = _Distinct()
    kept: dict[int, tuple[int, NDArray[np.integer]]] = {}
    limit = 2**64
    for document in documents:
        record = _hash(seed, "record", document.record)
        seen.add(record)
        if record >= limit and record not in kept:
            continue
        place = _hash(seed, "document", document.text)
        if record in kept and kept[record][0] <= place:
            continue
        (ids,) = encoder.encode([document])
        if ids.size < min_tokens:
            continue
        kept[record] = (place, ids)
        if len(kept) > count:
            del kept[max(kept)]
        if len(kept) == count:
            limit = max(kept)
    if not kept:
        raise DataError(
            f"no document of at least {min_tokens} tokens among {len(seen):,} records",
            remedy="give more text, or longer text, or ask for fewer tokens",
        )
    return _Drawn([kept[record] for record in sorted(kept)], len(seen))


def _hash(seed: int, purpose: str, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode())
    return int.from_bytes(digest.digest()[:8], "big")


class _Distinct:
    """Counts different numbers of 64 bits, holding each once."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._new: set[int] = set()

    def add(self, number: int) -> None:
        self._new.add(number)
        if len(self._new) >= _BUFFER_RECORDS:
            self._settle()

    def __len__(self) -> int:
        self._settle()
        return self._sorted.size

    def _settle(self) -> None:
        new = np.fromiter(self._new, dtype=np.uint64, count=len(self._new))
        self._sorted = np.union1d(self._sorted, new)
        self._new.clear()

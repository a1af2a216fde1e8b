"""Scores on disk: what each token of a text costs each model, all on the same windows.

Legend: B window of a batch, W window, T target position, D document, N target that counts.

A text's sample is taken once a study: whole documents, chosen as ``moiety eval`` chooses them, each
beginning on a window's border. A cell is one model on one text under one seed: a safetensors file
of nats ``[W, T]``. Everything that a table says of it is arithmetic on these files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from moiety.data import PackedText, Skipped, Sources, load_tokenizer, pack_text
from moiety.errors import FormatError
from moiety.files import write_atomic

FIRST_TOKENS = (32, 128)
"""Beginnings of documents that are looked at by themselves: where evidence is scarce."""

BATCH_WINDOWS = 16

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]


class Windows(NamedTuple):
    """Windows of one document each: tokens and documents int64 ``[B, T+1]``, -1 for padding."""

    tokens: Longs
    documents: Longs


Score = Callable[[Windows], NDArray[np.float32]]
"""Windows to the nats of each target, ``[B, T]``."""


@dataclass(frozen=True)
class Sample:
    """The windows of one text that every model is scored on.

    Shapes: ``tokens``, ``documents`` ``[W, T+1]``; ``document``, ``place`` ``[W, T]``: which of the
    sampled documents a target belongs to and how many of its tokens come before, -1 where a target
    does not count; ``bytes`` ``[D]`` of whole documents, and of their first tokens.
    """

    tokens: Longs
    documents: Longs
    document: Longs
    place: Longs
    bytes: Longs
    bytes_first: dict[int, Longs]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which targets count, ``[W, T]``."""
        counts: NDArray[np.bool_] = self.document >= 0
        return counts

    def batches(self) -> Iterator[Windows]:
        """All windows, in order."""
        for at in range(0, len(self.tokens), BATCH_WINDOWS):
            here = slice(at, at + BATCH_WINDOWS)
            yield Windows(self.tokens[here], self.documents[here])

    def document_bytes(self, first: int | None = None) -> Floats:
        """Bytes of each document, or of its first tokens, ``[D]``."""
        sizes_D = self.bytes if first is None else self.bytes_first[first]
        return sizes_D.astype(np.float64)

    def document_nats(self, nats: Floats, first: int | None = None) -> Floats:
        """Nats ``[..., W, T]`` summed over each document or its first tokens, ``[..., D]``."""
        taken_WT = self.counted if first is None else self.counted & (self.place < first)
        sums_D = np.zeros((*nats.shape[:-2], len(self.bytes)))
        np.add.at(sums_D.T, self.document[taken_WT], nats[..., taken_WT].T)
        return sums_D


def take_sample(
    anchor: Path, sources: Sources, *, window_tokens: int, max_tokens: int, seed: int = 0
) -> Sample:
    """Whole documents of a text, at most ``max_tokens`` tokens of them (at least one document)."""
    tokenizer, separator = load_tokenizer(anchor)
    with TemporaryDirectory() as scratch:
        packed = pack_text(
            sources.documents(Skipped()),
            tokenizer,
            Path(scratch) / "text",
            window_tokens=window_tokens,
            separator=separator,
            align=True,
        )
        tokens, documents, sizes_D = _look(packed, max_tokens, seed)
    counted = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    chosen, number_N = np.unique(documents[:, 1:][counted], return_inverse=True)
    begins_D = np.searchsorted(number_N, np.arange(len(chosen)))
    document, place = np.full(counted.shape, -1), np.full(counted.shape, -1)
    document[counted] = number_N
    place[counted] = np.arange(len(number_N)) - begins_D[number_N]
    ids_D = np.split(tokens[:, 1:][counted], begins_D[1:])
    first = {count: _sizes(tokenizer, ids_D, sizes_D, count) for count in FIRST_TOKENS}
    return Sample(tokens, documents, document, place, sizes_D, first)


def _look(packed: PackedText, max_tokens: int, seed: int) -> tuple[Longs, Longs, Longs]:
    """The windows that judging would score, and the bytes of their documents."""
    seen: list[Any] = []

    def look(windows: Any) -> NDArray[np.float32]:
        seen.append(windows)
        return np.zeros((len(windows.tokens), packed.window_tokens), np.float32)

    sizes_D = packed.judge(look, max_tokens=max_tokens, seed=seed).bytes
    tokens, documents = (
        np.concatenate([getattr(windows, name) for windows in seen])
        for name in ("tokens", "documents")
    )
    return tokens, documents, sizes_D


def _sizes(tokenizer: Any, ids_D: Sequence[Longs], sizes_D: Longs, count: int) -> Longs:
    """Bytes of text in the first tokens of each document; a torn character counts as its mark."""
    return np.array(
        [
            size if len(ids) <= count else len(tokenizer.decode(ids[:count].tolist()).encode())
            for ids, size in zip(ids_D, sizes_D, strict=True)
        ],
        np.int64,
    )


def save_sample(path: Path, sample: Sample) -> None:
    """Writes a sample, whole or not at all."""
    names = ("tokens", "documents", "document", "place", "bytes")
    arrays = {name: getattr(sample, name) for name in names}
    arrays |= {f"bytes.first.{count}": sizes for count, sizes in sample.bytes_first.items()}
    write_atomic(path, save(arrays))


def load_sample(path: Path) -> Sample:
    """What ``save_sample`` wrote."""
    arrays = _load(path)
    first = {count: arrays.pop(f"bytes.first.{count}") for count in FIRST_TOKENS}
    return Sample(bytes_first=first, **arrays)


def score_all(sample: Sample, score: Score) -> NDArray[np.float32]:
    """Nats of every target, ``[W, T]``."""
    return np.concatenate([score(windows).astype(np.float32) for windows in sample.batches()])


def save_nats(path: Path, nats: NDArray[np.float32]) -> None:
    """Writes a cell, whole or not at all."""
    write_atomic(path, save({"nats": nats}))


def load_nats(path: Path, sample: Sample) -> Floats:
    """A cell's nats, ``[W, T]``, with 0 where a target does not count.

    Raises:
        FormatError: a file that is not a cell of this sample.
    """
    nats_WT = _load(path)["nats"]
    if nats_WT.shape != sample.document.shape:
        raise FormatError(f"nats of shape {nats_WT.shape}", where=path, remedy="delete it")
    return np.where(sample.counted, nats_WT.astype(np.float64), 0.0)


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise FormatError(f"cannot be read: {error}", where=path, remedy="delete it") from error

"""The public sample of an anchor, and its probe, on which tables of evidence are judged.

Legend: W window, T position.
"""

from __future__ import annotations

import gzip
import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np

from moiety.bundle import anchors
from moiety.data import PackedText, Skipped, Sources
from moiety.errors import DataError
from moiety.files import digest_bytes
from moiety.tensors import array_plan, write_tensors

SAMPLE_MAX_BYTES = 16 * 2**20
"""Public text shipped with an anchor: enough that an owner's batches rarely repeat it."""

_WINDOWS = 64
"""Windows that the probe is taken from."""


def write_sample(sources: Sources, path: Path, skipped: Skipped) -> None:
    """Writes a fair sample of the documents, chosen by hash, in the order of the hash.

    Each line keeps its record, so that the split into train and held-out is the same later.
    """
    chosen: list[tuple[int, str, bytes]] = []
    total = 0
    for document in sources.documents(skipped):
        line = json.dumps({"record": document.record, "text": document.text}, ensure_ascii=False)
        data = line.encode("utf-8") + b"\n"
        name = digest_bytes(data)
        # A heap of negated hashes: the largest hash goes first when the sample is full.
        heapq.heappush(chosen, (-int(name[:15], 16), name, data))
        total += len(data)
        while total > SAMPLE_MAX_BYTES and len(chosen) > 1:
            total -= len(heapq.heappop(chosen)[2])
    if not chosen:
        raise DataError("no public text", where=", ".join(sources.paths))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
    ):
        for _, _, data in sorted(chosen, reverse=True):
            packed.write(data)


def sample_sources(anchor: Path) -> Sources:
    """The anchor's public sample as a source of text."""
    return Sources([str(anchor / anchors.SAMPLE)], record_key="record")


def write_probe(text: PackedText, path: Path) -> None:
    """Writes ``tokens``, the beginnings of documents of an aligned public text.

    A table of evidence applied to them says, without running any model, how much of public text it
    would capture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, [array_plan(anchors.TOKENS, _beginnings(text), "I32")])


def _beginnings(text: PackedText) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Tokens of the first window of some documents of an aligned text, -1 after their end."""
    documents = np.random.default_rng(0).permutation(text.num_documents)[:_WINDOWS]
    first = [text.windows_of(documents[[n]])[0] for n in range(len(documents))]
    windows = text.windows(np.array(first))
    inside = windows.documents[:, :-1] >= 0
    return np.where(inside, windows.tokens[:, :-1], -1).astype(np.int32)

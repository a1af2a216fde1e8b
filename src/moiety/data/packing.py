"""Documents to a packed text on disk, or to a pair of them: one to train on, one held out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from moiety.data.documents import Document
from moiety.data.packed import PackedText
from moiety.data.tokenizer import PlainEncoder, batches
from moiety.data.writer import (
    EncodedText,
    Layout,
    PackedWriter,
    read_added,
    read_digests,
    record_digest,
)
from moiety.errors import ConfigError, DataError
from moiety.files import new_folder

Progress = Callable[[int], None]


def pack_text(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    window_tokens: int,
    separator: int,
    align: bool,
    by_record: bool = False,
    planted: Sequence[tuple[str, str]] = (),
    progress: Progress | None = None,
) -> PackedText:
    """Tokenizes documents into a new folder, which appears whole or not at all.

    With ``align`` each document begins on a window's border, so that no window mixes documents;
    with ``by_record`` each record does, its documents side by side, so that no window mixes
    records; without either they follow each other directly. ``planted`` are more texts, each behind
    the name of its record, spread evenly among the documents. ``progress`` hears the bytes of text
    done.

    Raises:
        DataError: no document, or (unaligned) fewer tokens than one window.
        StateError: the folder exists already, or the disk is full.
    """
    encoder = PlainEncoder(tokenizer, separator)
    layout = Layout(window_tokens, separator, align, encoder.dtype)
    with new_folder(folder) as new, PackedWriter(new, layout) as writer:
        for text in _encode(documents, encoder, progress):
            writer.add(text)
        full = _strewn(writer, planted, encoder)
        (_gathered(full) if by_record else full).finish()
    return PackedText.open(folder)


def pack_split(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    window_tokens: int,
    separator: int,
    heldout_fraction: float = 0.05,
    by_record: bool = False,
    planted: Sequence[tuple[str, str]] = (),
    progress: Progress | None = None,
) -> tuple[PackedText, PackedText]:
    """Packs ``train/`` (together, or by record) and ``heldout/`` (aligned).

    Each record goes whole to the side that the hash of its name says, whatever the order of the
    files. If that leaves a side empty, the record whose hash lies nearest the border moves there.
    ``planted`` are more texts, each behind the name of its record: they all go to train, spread
    evenly among its documents, and change nothing about the sides.

    Raises:
        ConfigError: a fraction that is not between 0 and 1.
        DataError: no document, all of one record, or fewer training tokens than one window.
        StateError: the folder exists already, or the disk is full.
    """
    if not 0 < heldout_fraction < 1:
        raise ConfigError(
            f"a held-out fraction of {heldout_fraction}",
            where="heldout_fraction",
            remedy="choose one between 0 and 1, such as 0.05",
        )
    encoder = PlainEncoder(tokenizer, separator)
    layouts = [Layout(window_tokens, separator, align, encoder.dtype) for align in (False, True)]
    with new_folder(folder) as new, ExitStack() as stack:
        train = stack.enter_context(PackedWriter(new / "train", layouts[0]))
        heldout = stack.enter_context(PackedWriter(new / "heldout", layouts[1]))
        for text in _encode(documents, encoder, progress):
            (heldout if _is_below(text.digest, heldout_fraction) else train).add(text)
        if heldout.num_documents == 0:
            train = stack.enter_context(_move_record(train, heldout, position=0))
        elif train.num_documents == 0:
            heldout = stack.enter_context(_move_record(heldout, train, position=-1))
        # Last, so that no planted record can be the one that moves.
        train = stack.enter_context(_strewn(train, planted, encoder))
        (_gathered(train) if by_record else train).finish()
        heldout.finish()
    return PackedText.open(folder / "train"), PackedText.open(folder / "heldout")


def _is_below(digest: bytes, fraction: float) -> bool:
    """Whether a record is held out: its hash, read as a number in [0, 1), is below the fraction."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _move_record(full: PackedWriter, empty: PackedWriter, *, position: int) -> PackedWriter:
    """Moves the record at ``position`` in the order of hashes to the empty side.

    Which record that is can only be known at the end, so the full side's tokens are copied, on
    disk, without it. Only corpora of few records come here. Returns the writer of what stays.
    """
    full.close()
    if full.num_documents == 0:
        raise DataError("no document", remedy="name files that hold text")
    digests = read_digests(full.folder)
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    moves = np.all(digests == digests[order[position]], axis=1)
    if moves.all():
        raise DataError(
            "all the text belongs to one record, so none of it can be held out",
            where=full.where,
            remedy="give more documents, one on each JSON line, or name other text with --heldout",
        )
    aside = full.folder.with_name("aside")
    full.folder.rename(aside)
    rest = PackedWriter(full.folder, full.layout)
    try:
        for text, move in zip(read_added(aside, full.layout, full.where), moves, strict=True):
            (empty if move else rest).add(text)
    except BaseException:
        rest.close()
        raise
    shutil.rmtree(aside)
    return rest


def _strewn(
    writer: PackedWriter, planted: Sequence[tuple[str, str]], encoder: PlainEncoder
) -> PackedWriter:
    """The same text with others among its documents, as far apart as can be, none before the first.

    How far that is can only be known at the end, so the tokens are copied once more, on disk.
    """
    total = writer.num_documents
    if not planted or total == 0:
        return writer
    documents = [Document(text, record, record) for record, text in planted]
    others = list(_encode(documents, encoder, None))

    def arranged(folder: Path) -> Iterator[EncodedText]:
        done = 0
        for number, text in enumerate(read_added(folder, writer.layout, writer.where)):
            yield text
            while done < len(others) and done * total // len(others) <= number:
                yield others[done]
                done += 1

    return _rewritten(writer, writer.layout, arranged)


def _gathered(scattered: PackedWriter) -> PackedWriter:
    """The same text with each record's documents side by side, on windows of their own.

    Records stand in the order of their hashes; documents of one keep theirs.
    """
    if scattered.num_documents == 0:
        return scattered

    def arranged(folder: Path) -> Iterator[EncodedText]:
        digests = read_digests(folder)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        return read_added(folder, scattered.layout, scattered.where, order)

    layout = replace(scattered.layout, align=False, by_record=True)
    return _rewritten(scattered, layout, arranged)


def _rewritten(
    full: PackedWriter, layout: Layout, arranged: Callable[[Path], Iterator[EncodedText]]
) -> PackedWriter:
    """Writes a text again, as ``arranged`` reads it from the folder that it was moved to."""
    full.close()
    aside = full.folder / "aside"
    aside.mkdir()
    for path in sorted(full.folder.glob("*.bin")):
        path.rename(aside / path.name)
    again = PackedWriter(full.folder, layout)
    try:
        for text in arranged(aside):
            again.add(text)
    except BaseException:
        again.close()
        raise
    shutil.rmtree(aside)
    return again


def _encode(
    documents: Iterable[Document], encoder: PlainEncoder, progress: Progress | None
) -> Iterator[EncodedText]:
    done_bytes = 0
    for batch in batches(documents):
        for document, ids in zip(batch, encoder.encode(batch), strict=True):
            size = len(document.text.encode("utf-8"))
            done_bytes += size
            yield EncodedText(ids, size, record_digest(document.record), document.where)
        if progress is not None:
            progress(done_bytes)

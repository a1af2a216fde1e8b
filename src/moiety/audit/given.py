"""The text that an audit was given, read from end to end: is it what the run was trained on?

A run keeps its text as tokens. What is given is compared with it document by document, as two heaps
of digests: another file, a line too many, a note with a word altered are all seen.

Legend: N document, C canary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moiety.bundle import papers
from moiety.data import PackedText, tokenizer
from moiety.errors import ConfigError, StateError

Digests = NDArray[np.uint64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class OwnText:
    """A run's own text: what it was trained on, canaries among it, and what it kept aside.

    ``heldout`` is None where other text was named to judge on, so that all of the owner's was
    trained on. ``paths`` are the files as they were named, ``record_key`` told records apart.
    """

    train: PackedText
    heldout: PackedText | None
    record_key: str | None
    paths: tuple[str, ...]


def survey(documents: Iterable[tokenizer.Document], encoder: tokenizer.PlainEncoder) -> Digests:
    """A digest of the tokens of each document, in their order, ``[N]``."""
    return _digests(ids for batch in tokenizer.batches(documents) for ids in encoder.encode(batch))


def kept_aside(
    given: Digests,
    own: OwnText,
    canaries: papers.Canaries | None,
    encoder: tokenizer.PlainEncoder,
) -> Flags:
    """Which of the documents given the run kept aside, ``[N]``, if they are the run's own.

    One that was trained on as well, in another record, was not kept aside. What was planted among
    the owner's text is taken away first.

    Raises:
        ConfigError: other documents, or not all of them.
        StateError: canaries that are not those of this text.
    """
    train = _digests(own.train.documents())
    aside = _digests(() if own.heldout is None else own.heldout.documents())
    texts, planted = _canaries(canaries, encoder)
    names, more = _difference(np.concatenate([given, planted]), np.concatenate([train, aside]))
    strange, missing = int(more[more > 0].sum()), int(-more[more < 0].sum())
    if np.isin(names[more != 0], texts).any():
        raise StateError(
            "the run's canaries are not those that its text holds",
            where=own.train.folder,
            remedy="put the run's own canaries.json back, or train again",
        )
    if strange or missing:
        raise ConfigError(
            f"not the text that this run was trained on: of {given.size:,} documents {strange:,} "
            f"are none of the run's, and {missing:,} of the run's own are not among them",
            where="--data",
            remedy=f"give what moiety train was given, as it was then: {_named(own.paths)}; with "
            "the same --text-field and --skip-bad",
        )
    return np.isin(given, aside) & ~np.isin(given, train)


def _canaries(
    paper: papers.Canaries | None, encoder: tokenizer.PlainEncoder
) -> tuple[Digests, Digests]:
    """Digests of all canaries, ``[C]``, and of those that were planted, as often as they were."""
    if paper is None:
        return _digests(()), _digests(())
    documents = (tokenizer.Document(text, record="", where="canaries") for text in paper.texts)
    texts_C = survey(documents, encoder)
    return texts_C, np.repeat(texts_C[np.array(paper.planted)], papers.CANARY_COPIES)


def _digests(documents: Iterable[NDArray[np.integer]]) -> Digests:
    return np.fromiter(map(_digest, documents), dtype=np.uint64)


def _digest(ids: NDArray[np.integer]) -> int:
    return int.from_bytes(hashlib.sha256(ids.astype("<u4").tobytes()).digest()[:8], "big")


def _difference(one: Digests, other: Digests) -> tuple[Digests, NDArray[np.int64]]:
    """Every digest of either, and how much oftener the one has it than the other."""
    names, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    counts = (np.bincount(part, minlength=names.size) for part in np.split(places, [one.size]))
    mine, theirs = counts
    return names, mine - theirs


def _named(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")

"""The text that an audit was given, read once from end to end: is it the run's, and told apart?

A run keeps its text as tokens. What is given is compared with it document by document, as two heaps
of digests: another file, a line too many, a note with a word altered are all seen.

Legend: N document, C canary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moiety.audit.records import MEMBER_MIN_TOKENS, Passage
from moiety.bundle import papers
from moiety.data import PackedText, Skipped, Sources, tokenizer
from moiety.errors import ConfigError, StateError

SHARED_MAX: Final = 0.1
"""So much of the strangers' text may be the members' too."""

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


@dataclass(frozen=True)
class Survey:
    """Digests of each document's tokens and of the first of them, and how many there are, ``[N]``.

    24 bytes a document, in the order in which they are read.
    """

    wholes: Digests
    beginnings: Digests
    sizes: NDArray[np.int64]

    def only(self, flags: Flags) -> Survey:
        """The same of some documents."""
        return Survey(self.wholes[flags], self.beginnings[flags], self.sizes[flags])

    def shorter(self, tokens: int) -> int:
        """How many documents have fewer tokens."""
        return int((self.sizes < tokens).sum())

    @property
    def passages(self) -> Digests:
        """The beginnings of documents that are long enough to be told from others."""
        return self.beginnings[self.sizes >= MEMBER_MIN_TOKENS]


class GivenText:
    """The text of both kinds, each document of it seen.

    Of a run nobody needs to say what was trained on: ``own`` knows. Of a bundle and of a release
    all of ``members`` is taken for it, on their owner's word. ``tokens`` is how long a passage is.

    Raises:
        ConfigError: not the run's own text, told apart by another key, or no strangers.
        StateError: canaries that are not those of the run's text.
    """

    def __init__(
        self,
        members: Sources,
        nonmembers: Sources | None,
        own: OwnText | None,
        canaries: papers.Canaries | None,
        encoder: tokenizer.PlainEncoder,
        *,
        tokens: int,
    ) -> None:
        self._named, self._others = members, nonmembers
        given = survey(members.documents(Skipped()), encoder, tokens)
        self.aside = np.zeros(given.sizes.size, dtype=np.bool_)
        if own is not None:
            self.aside = kept_aside(given.wholes, own, canaries, encoder)
        if nonmembers is None and not self.aside.any():
            raise ConfigError(
                "all that the run kept aside was trained on too, in other records",
                where="--heldout",
                remedy="name like text that the expert was not trained on",
            )
        self.members_seen = given.only(~self.aside)
        self.outsiders_seen = (
            given.only(self.aside)
            if nonmembers is None
            else survey(nonmembers.documents(Skipped()), encoder, tokens)
        )

    def members(self) -> Iterator[tokenizer.Document]:
        """What was trained on."""
        return compress(self._named.documents(Skipped()), ~self.aside)

    def outsiders(self) -> Iterator[tokenizer.Document]:
        """Like text that was not."""
        if self._others is not None:
            return self._others.documents(Skipped())
        return compress(self._named.documents(Skipped()), self.aside)

    def check_apart(self, drawn: Iterable[Passage]) -> None:
        """Texts on both sides make an attack look harmless that tells them apart.

        Looked at are all strangers, and those that were drawn: records of few documents are a small
        part of the one and may be a large part of the other.

        Raises:
            ConfigError: too many strangers whose passage a member has.
        """
        known = self.members_seen.passages
        for strangers in (
            self.outsiders_seen.passages,
            _digests(passage.tokens for passage in drawn),
        ):
            shared = int(np.isin(strangers, known).sum())
            # Real text repeats itself; a file named twice, or cut at lines, does so all over.
            if shared > strangers.size * SHARED_MAX:
                raise ConfigError(
                    f"{shared:,} of {strangers.size:,} documents that are to be strangers are also "
                    "among what was trained on",
                    where="--heldout",
                    remedy="name text that the expert was not trained on",
                )


def check_kinds(members: Sources, nonmembers: Sources | None, own: OwnText | None) -> None:
    """Before anything is computed: there must be text of both kinds, split as it was.

    Raises:
        ConfigError: no text to compare with, or records told apart by another key.
    """
    if own is None or own.heldout is None:
        if nonmembers is None:
            raise ConfigError(
                "no text to compare with",
                where="--heldout",
                remedy="name like text that the expert was not trained on",
            )
    elif members.record_key != own.record_key:
        told = f"give {own.record_key}" if own.record_key else "leave it"
        raise ConfigError(
            "the run told records apart by another key", where="--record-key", remedy=told
        )


def survey(
    documents: Iterable[tokenizer.Document], encoder: tokenizer.PlainEncoder, tokens: int
) -> Survey:
    """Every document, and its first ``tokens`` tokens."""
    kinds = [("whole", np.uint64), ("beginning", np.uint64), ("size", np.int64)]
    rows = np.fromiter(
        (
            (_digest(ids), _digest(ids[:tokens]), ids.size)
            for batch in tokenizer.batches(documents)
            for ids in encoder.encode(batch)
        ),
        dtype=kinds,
    )
    return Survey(rows["whole"], rows["beginning"], rows["size"])


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
    documents = [tokenizer.Document(text, record="", where="canaries") for text in paper.texts]
    texts_C = _digests(encoder.encode(documents))
    return texts_C, np.repeat(texts_C[np.array(paper.planted)], papers.CANARY_COPIES)


def _digests(documents: Iterable[NDArray[np.integer]]) -> Digests:
    return np.fromiter(map(_digest, documents), dtype=np.uint64)


def _digest(ids: NDArray[np.integer]) -> int:
    return int.from_bytes(hashlib.sha256(ids.astype("<u4").tobytes()).digest()[:8], "big")


def _difference(one: Digests, other: Digests) -> tuple[Digests, NDArray[np.int64]]:
    """Every digest of either, and how much oftener the one has it than the other."""
    names, places = np.unique(np.concatenate([one, other]), return_inverse=True)
    mine, theirs = (
        np.bincount(part, minlength=names.size) for part in np.split(places, [one.size])
    )
    return names, mine - theirs


def _named(paths: tuple[str, ...]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")

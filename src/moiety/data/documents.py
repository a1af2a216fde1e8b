"""What a corpus is made of: documents, whose record each one is, and what was left out.

A *record* is the unit of privacy. Without a ``record_key`` each document is its own record, named
by the SHA-256 of its text, so that copies of a text are one record and can never lie on both
sides of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moiety.errors import DataError

PIECE_CHARS = 1_000_000
"""No document is longer: a longer text becomes several documents of one record."""

OR_SKIP = "or leave such text out with --skip-bad"


@dataclass(frozen=True)
class Document:
    """One text, whose ``record`` it is part of, and ``where`` it was read (file, line or row)."""

    text: str
    record: str
    where: str


@dataclass
class Skipped:
    """What was left out of a corpus, by reason: nothing is dropped in silence."""

    totals: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def count(self, reason: str, where: str) -> None:
        """Notes one line, row or file left out, and remembers the first place of each reason."""
        self.totals[reason] = self.totals.get(reason, 0) + 1
        self.first.setdefault(reason, where)

    @property
    def total(self) -> int:
        """How many lines, rows and files were left out, all reasons together."""
        return sum(self.totals.values())

    def summary(self) -> str:
        """One line for the screen: each reason, how often, and where it was seen first."""
        if not self.totals:
            return "nothing skipped"
        reasons = sorted(self.totals.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count:,} {reason} (first: {self.first[reason]})" for reason, count in reasons]
        return f"{self.total:,} skipped: " + "; ".join(parts)


@dataclass(frozen=True)
class ReadingRules:
    """How rows become documents, and what happens to those that cannot."""

    text_field: str
    record_key: str | None
    skip_bad: bool
    skipped: Skipped

    def forgive(self, error: DataError) -> None:
        """Counts the error when bad text is to be skipped, otherwise raises it."""
        if not self.skip_bad:
            raise error
        self.skipped.count(error.message, error.where or "?")

    def documents(self, fields: Any, where: str) -> Iterator[Document]:
        """The documents of one row: one, none (empty text), or several (a very long text).

        Raises:
            DataError: not an object, a field missing, or a field of the wrong type.
        """
        if not isinstance(fields, Mapping):
            raise DataError(
                "not a JSON object", where=where, remedy='write {"text": "..."} on each line'
            )
        text = self._text(fields, where)
        if not text.strip():
            self.skipped.count("empty text", where)
            return
        record = text_record([text]) if self.record_key is None else self._record(fields, where)
        for piece in cut_pieces([text]):
            yield Document(piece, record, where)

    def _text(self, fields: Mapping[str, Any], where: str) -> str:
        text = _field(fields, self.text_field, where, "--text-field")
        if not isinstance(text, str):
            raise DataError(
                f'field "{self.text_field}" is {_kind(text)}, not text',
                where=where,
                remedy=f"name the field that holds the text with --text-field, {OR_SKIP}",
            )
        check_unicode(text, where)
        return text

    def _record(self, fields: Mapping[str, Any], where: str) -> str:
        assert self.record_key is not None
        record = _field(fields, self.record_key, where, "--record-key")
        whole = isinstance(record, int) and not isinstance(record, bool)
        if not whole and not (isinstance(record, str) and record):
            raise DataError(
                f'field "{self.record_key}" is {_kind(record)}, it cannot say whose record it is',
                where=where,
                remedy=f"give each record a name or a whole number, {OR_SKIP}",
            )
        check_unicode(str(record), where)
        return str(record)


def check_unicode(text: str, where: str) -> None:
    """Raises ``DataError`` for half a surrogate pair: JSON can spell it, UTF-8 cannot hold it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "half a surrogate pair, which is not text",
            where=where,
            remedy=f"write the text again as UTF-8, {OR_SKIP}",
        ) from error


def text_record(chunks: Iterable[str]) -> str:
    """The record a text makes by itself: the SHA-256 of its UTF-8 bytes."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.encode("utf-8"))
    return digest.hexdigest()


def cut_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Joins and cuts text into pieces of at most ``PIECE_CHARS``; joined, they are the text again.

    Cuts after a blank line where the second half of a piece has one, else after a line, else
    before a space, else anywhere.
    """
    rest = ""
    for chunk in chunks:
        # In steps, so that a long chunk is not copied once for every piece it makes.
        for start in range(0, len(chunk), PIECE_CHARS):
            rest += chunk[start : start + PIECE_CHARS]
            while len(rest) > PIECE_CHARS:
                cut = _cut_at(rest)
                yield rest[:cut]
                rest = rest[cut:]
    if rest:
        yield rest


def _cut_at(text: str) -> int:
    for mark, keep in (("\n\n", 2), ("\n", 1), (" ", 0)):
        at = text.rfind(mark, PIECE_CHARS // 2, PIECE_CHARS)
        if at >= 0:
            return at + keep
    return PIECE_CHARS


def _field(fields: Mapping[str, Any], name: str, where: str, option: str) -> Any:
    if name not in fields:
        here = ", ".join(sorted(repr(str(key))[:40] for key in fields)[:8]) or "none"
        raise DataError(
            f'field "{name}" is missing',
            where=where,
            remedy=f"name another with {option} (fields here: {here}), {OR_SKIP}",
        )
    return fields[name]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "empty" if not value else "text"
    return "a list" if isinstance(value, list) else f"of type {type(value).__name__}"

"""Documents out of text files, JSON lines, Parquet and the hub: one at a time, in a fixed order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moiety.data.documents import (
    OR_SKIP,
    Document,
    ReadingRules,
    Skipped,
    cut_pieces,
    text_record,
)
from moiety.data.sources import HubText, find_sources, kind_of
from moiety.data.streams import LINE_MAX_BYTES, not_utf8, read_lines, read_text
from moiety.errors import DataError

_PARQUET_ROWS = 64
"""Rows decoded at once: small, because one row may hold a whole book."""


@dataclass(frozen=True)
class Sources:
    """Which text, and how it is read."""

    paths: Sequence[str]
    text_field: str = "text"
    record_key: str | None = None
    skip_bad: bool = False

    def documents(self, skipped: Skipped) -> Iterator[Document]:
        """Every document, streamed; what is left out is counted in ``skipped``."""
        return read_documents(
            self.paths,
            text_field=self.text_field,
            record_key=self.record_key,
            skip_bad=self.skip_bad,
            skipped=skipped,
        )


def read_documents(
    sources: Sequence[str | Path],
    *,
    text_field: str = "text",
    record_key: str | None = None,
    skip_bad: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """Every document of files, folders, globs and hub data sets, streamed.

    Sources are found at once; text is read as the iterator is drawn. Empty texts and blank lines
    are counted in ``skipped``, never an error by themselves. With ``skip_bad`` so is everything
    that cannot be read, decoded or parsed.

    Raises:
        DataError: a source that does not exist; bad text (file, line or row); no text at all.
    """
    skipped = Skipped() if skipped is None else skipped
    rules = ReadingRules(text_field, record_key, skip_bad, skipped)
    return _read_all(find_sources(sources, skipped), rules)


def _read_all(found: list[Path | HubText], rules: ReadingRules) -> Iterator[Document]:
    empty = True
    for source in found:
        for document in _read_source(source, rules):
            empty = False
            yield document
    if empty:
        raise DataError(
            f"no text in {len(found):,} file(s): {rules.skipped.summary()}",
            where=str(found[0]),
            remedy="name files that hold text",
        )


def _read_source(source: Path | HubText, rules: ReadingRules) -> Iterator[Document]:
    if isinstance(source, HubText):
        # Outside the net below: a lost connection is not bad text, and must not go unnoticed.
        yield from _read_rows(_hub_rows(source), rules)
        return
    try:
        if kind_of(source) == "parquet":
            yield from _read_rows(_parquet_rows(source, rules), rules)
        elif kind_of(source) == "lines":
            yield from _read_rows(_json_rows(source), rules)
        else:
            yield from _read_text_file(source, rules)
    except DataError as error:
        rules.forgive(error)


def _read_rows(
    rows: Iterator[tuple[str, Any | DataError]], rules: ReadingRules
) -> Iterator[Document]:
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            if row is None:
                rules.skipped.count("blank line", where)
                continue
            yield from rules.documents(row, where)
        except DataError as error:
            rules.forgive(error)


def _read_text_file(path: Path, rules: ReadingRules) -> Iterator[Document]:
    """One record. Read twice: the record's name needs the whole text, the text may be huge."""
    if rules.record_key is not None:
        raise DataError(
            f'a text file has no field "{rules.record_key}" to say whose record it is',
            where=f"{path}:1",
            remedy=f"give the text as JSON lines, {OR_SKIP}",
        )
    record = text_record(read_text(path))
    line = 1
    empty = True
    for piece in cut_pieces(read_text(path)):
        if piece.strip():
            empty = False
            yield Document(piece, record, f"{path}:{line}")
        line += piece.count("\n")
    if empty:
        rules.skipped.count("empty text", str(path))


def _json_rows(path: Path) -> Iterator[tuple[str, Any | DataError]]:
    # Our own reader: the one in `datasets` cannot say which line failed.
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        yield where, _parse_line(line, where)


def _parse_line(line: bytes | None, where: str) -> Any | DataError:
    """The value of one line; ``None`` for a blank one; the error instead of raising it."""
    if line is None:
        return DataError(
            f"a line over {LINE_MAX_BYTES // 2**20} MB",
            where=where,
            remedy=f"write one JSON object on each line, {OR_SKIP}",
        )
    if not line.strip():
        return None
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return not_utf8(where)
    except (ValueError, RecursionError) as error:
        place = f"column {error.colno}: " if isinstance(error, json.JSONDecodeError) else ""
        return DataError(
            "not JSON",
            where=where,
            remedy=f"{place}write one JSON object on each line, {OR_SKIP}",
        )
    # A line that says `null` is not a blank line: let it fail as what it is.
    return [] if value is None else value


def _parquet_rows(path: Path, rules: ReadingRules) -> Iterator[tuple[str, Any | DataError]]:
    # Imported here: half a second that commands without Parquet need not wait for.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [name for name in (rules.text_field, rules.record_key) if name]
            columns = [name for name in wanted if name in file.schema_arrow.names]
            if len(columns) < len(set(wanted)):
                columns = file.schema_arrow.names
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    where = f"{path} row {number}"
                    yield where, _parquet_row(batch, index, where)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            "cannot be read as Parquet",
            where=f"{path} row {number + 1}",
            remedy=f"{str(error)[:120]}; write the file again, {OR_SKIP}",
        ) from error


def _parquet_row(batch: Any, index: int, where: str) -> Mapping[str, Any] | DataError:
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return not_utf8(where)


def _hub_rows(source: HubText) -> Iterator[tuple[str, Any | DataError]]:
    number = 0
    try:
        # Imported here: it takes seconds, and only this function may touch the network.
        import datasets

        rows = datasets.load_dataset(source.name, split=source.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{source} row {number}", row
    except Exception as error:  # the hub, the network and every file format may fail here
        raise DataError(
            "cannot be read from the hub",
            where=f"{source} row {number + 1}",
            remedy=f"{type(error).__name__}: {str(error)[:160]}",
        ) from error

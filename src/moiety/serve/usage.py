"""Who used whom: requests, tokens and routing share of every expert, by key and hour.

A request is written at its end, and what it has used so far every now and then before; what is due
together shares a transaction. What cannot be written is owed, and tried again until it is. What a
token was routed to is never stored: it would tell the text.
"""

from __future__ import annotations

import asyncio
import csv
import io
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from moiety.errors import ConfigError, StateError
from moiety.files import write_atomic

BATCH_MAX = 256
"""Requests that share one transaction."""

TRIES = 3
LOCK_SECONDS = 10
RETRY_SECONDS = 1.0
"""So often what is owed is tried again."""

SQLITE_MODE = 0o600

_SHARE = "share_sum"
_COUNTS = ("requests", "prompt_tokens", "completion_tokens")
_NAMES = ("hour", "key", "expert")

_TABLE = sql.Table(
    "moiety_usage",
    sql.MetaData(),
    sql.Column("hour", sql.String(20), primary_key=True),
    sql.Column("key", sql.String(64), primary_key=True),
    sql.Column("expert", sql.String(64), primary_key=True),
    *(sql.Column(name, sql.BigInteger, nullable=False) for name in _COUNTS),
    sql.Column(_SHARE, sql.Double, nullable=False),
)
COLUMNS = tuple(column.name for column in _TABLE.columns)


class BooksError(Exception):
    """Usage is not written yet, so nothing that ended now may be told as done; or not read."""


@dataclass(frozen=True)
class Bill:
    """What one request used. ``weights``: each expert's routing weight, added up over tokens.

    ``requests`` is 0 where the request was counted by an earlier bill.
    """

    key: str
    prompt_tokens: int
    completion_tokens: int
    weights: Mapping[str, float]
    hour: str = field(default_factory=lambda: _hour(datetime.now(UTC)))
    requests: int = 1

    def since(self, before: Bill) -> Bill:
        """The rest of a request that was billed ``before``."""
        return replace(
            self,
            prompt_tokens=self.prompt_tokens - before.prompt_tokens,
            completion_tokens=self.completion_tokens - before.completion_tokens,
            weights={name: one - before.weights[name] for name, one in self.weights.items()},
            requests=0,
        )


def _hour(moment: datetime) -> str:
    """The hour of a moment in UTC, spelled so that its order is that of time."""
    return moment.strftime("%Y-%m-%dT%H:00:00Z")


Entry = tuple[Bill, "asyncio.Future[None]", asyncio.AbstractEventLoop]


class Books:
    """A database that one thread writes bills to. ``problem`` says why it last failed."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        self.problem: str | None = None
        self._owed: list[Bill] = []
        self._waiting: queue.Queue[Entry | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="usage", daemon=True)
        self._thread.start()

    def read(self, key: str, hours: int) -> list[dict[str, Any]]:
        """One key's rows of the latest hours, this one included, in order. Slow: reads the disk.

        Raises:
            BooksError: they cannot be read.
        """
        since = _hour(datetime.now(UTC) - timedelta(hours=hours - 1))
        own = sql.and_(_TABLE.c.key == key, _TABLE.c.hour >= since)
        try:
            with self._engine.connect() as connection:
                wanted = sql.select(_TABLE).where(own).order_by(*_TABLE.primary_key)
                return [dict(row) for row in connection.execute(wanted).mappings()]
        except SQLAlchemyError as error:
            raise BooksError(f"usage cannot be read: {_words(error)}") from error

    async def write(self, bill: Bill) -> None:
        """Returns when the bill is on the disk.

        Raises:
            BooksError: it is not. It is owed, and will be written as soon as that can be done.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.put((bill, done, loop))
        await done

    def close(self) -> None:
        """Writes what waits, and stops.

        Raises:
            StateError: something is owed that cannot be written; it is lost.
        """
        self._waiting.put(None)
        self._thread.join()
        self._engine.dispose()
        if self._owed:
            lost = sum(bill.requests for bill in self._owed)
            raise StateError(f"requests whose usage is lost: {lost}: {self.problem}")

    def _work(self) -> None:
        more = True
        while more:
            batch, more = self._take()
            bills = [*self._owed, *(bill for bill, _, _ in batch)]
            self.problem = self._write(sum_up(bills))
            self._owed = [] if self.problem is None else bills
            for _, done, loop in batch:
                loop.call_soon_threadsafe(_settle, done, self.problem)

    def _take(self) -> tuple[list[Entry], bool]:
        """What came, or nothing after a while where something is owed; and whether more may."""
        batch: list[Entry] = []
        with suppress(queue.Empty):
            entry = self._waiting.get(timeout=RETRY_SECONDS if self._owed else None)
            while entry is not None:
                batch.append(entry)
                if len(batch) == BATCH_MAX:
                    return batch, True
                entry = self._waiting.get_nowait()
            return batch, False
        return batch, True

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        problem = None
        for _ in range(TRIES):
            try:
                with self._engine.begin() as connection:
                    for row in rows:
                        _add(connection, row)
            except IntegrityError as error:  # another server wrote the row first: add to it
                problem = _words(error)
            except SQLAlchemyError as error:
                return _words(error)
            else:
                return None
        return problem


def _settle(done: asyncio.Future[None], problem: str | None) -> None:
    if done.cancelled():
        return
    if problem is None:
        done.set_result(None)
    else:
        done.set_exception(BooksError(f"usage cannot be written: {problem}"))


def sum_up(bills: Sequence[Bill]) -> list[dict[str, Any]]:
    """Rows that add up bills: one for each hour, key and expert, in order."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for bill in bills:
        for expert, weight in bill.weights.items():
            names = (bill.hour, bill.key, expert)
            row = rows.setdefault(names, dict.fromkeys(COLUMNS, 0) | {_SHARE: 0.0})
            row.update(zip(_NAMES, names, strict=True))
            row["requests"] += bill.requests
            row["prompt_tokens"] += bill.prompt_tokens
            row["completion_tokens"] += bill.completion_tokens
            row[_SHARE] += weight
    # One order for all servers, so that no two wait for each other.
    return [rows[names] for names in sorted(rows)]


def _add(connection: sql.Connection, row: Mapping[str, Any]) -> None:
    here = sql.and_(*(_TABLE.c[name] == row[name] for name in _NAMES))
    more = {name: _TABLE.c[name] + row[name] for name in (*_COUNTS, _SHARE)}
    if connection.execute(_TABLE.update().where(here).values(more)).rowcount == 0:
        connection.execute(_TABLE.insert().values(dict(row)))


def open_database(url: str, *, new: bool = True) -> sql.Engine:
    """The database at an SQLAlchemy URL, with our table in it.

    Raises:
        ConfigError: no such kind of database, or none that can be opened.
    """
    try:
        address = sql.make_url(url)
        _make_file(address, new=new)
        engine = sql.create_engine(address)
        if engine.dialect.name == "sqlite":
            sql.event.listen(engine, "connect", _settings_of_sqlite)
        with ExitStack() as undo:
            undo.callback(engine.dispose)
            _make_table(engine)
            undo.pop_all()
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise ConfigError(
            f"no database for usage: {_words(error)}", remedy="sqlite:///usage.sqlite, for example"
        ) from None
    return engine


def _make_file(address: sql.URL, *, new: bool) -> None:
    """SQLite's file, readable by nobody else: it tells who asks whom. What is there stays as it is.

    Raises:
        ConfigError: there is none, and it shall not be ``new``.
        OSError: it cannot be made.
    """
    if address.get_backend_name() != "sqlite" or "uri" in address.query or not address.database:
        return
    path = Path(address.database)
    if new:
        path.touch(SQLITE_MODE)
    elif not path.is_file():
        raise ConfigError("no usage was written here", where=path)


def _make_table(engine: sql.Engine) -> None:
    for left in reversed(range(TRIES)):
        try:
            _TABLE.metadata.create_all(engine)
        except DBAPIError:
            # Another server may have made it since we looked: then the next look finds it.
            if not left:
                raise
        else:
            return


def _settings_of_sqlite(connection: Any, _record: Any) -> None:
    # Writers do not stop readers; and a commit is on the disk before it is told.
    for setting in (f"busy_timeout={LOCK_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {setting}")


def _words(error: BaseException) -> str:
    """What went wrong, without the statement, and without a password in a URL."""
    told = getattr(error, "orig", None) or getattr(error, "strerror", None)
    return str(told or type(error).__name__)[:200]


def default_url(release: Path) -> str:
    """Beside the release, never in it: a release holds what its roster tells and nothing else."""
    place = Path(release).absolute()
    return f"sqlite:///{place.with_name(f'{place.name}.usage.sqlite')}"


def read_usage(url: str) -> list[dict[str, Any]]:
    """Every row, by hour, key and expert."""
    engine = open_database(url, new=False)
    try:
        with engine.connect() as connection:
            found = connection.execute(sql.select(_TABLE).order_by(*_TABLE.primary_key)).mappings()
            return [dict(row) for row in found]
    finally:
        engine.dispose()


def export_usage(url: str, out: Path) -> int:
    """Writes every row as CSV, or as Parquet where ``out`` says so. Returns how many.

    Raises:
        ConfigError: another kind of file, or no database there.
        StateError: something is at ``out``.
    """
    writers = {".csv": _csv, ".parquet": _parquet}
    if out.suffix not in writers:
        raise ConfigError("neither .csv nor .parquet", where=out, remedy="--out usage.csv")
    if out.exists():
        raise StateError("exists already", where=out, remedy="name a new file")
    rows = read_usage(url)
    write_atomic(out, writers[out.suffix](rows))
    return len(rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    kinds = {name: arrow.string() for name in _NAMES} | {name: arrow.int64() for name in _COUNTS}
    schema = arrow.schema([*kinds.items(), (_SHARE, arrow.float64())])
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_pylist(list(rows), schema=schema), sink)
    return bytes(sink.getvalue())

"""Usage in a database that is not SQLite: PostgreSQL, a server of its own, with several writers."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.serve.test_usage import BODY, by_expert, start

from moiety.serve.usage import Bill, Books, read_usage

PORT = 5432  # of a socket in a folder of its own, so it is never taken


def _find(name: str) -> str | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ["PATH"]]))


def _owner() -> dict[str, int]:
    """PostgreSQL never runs as root: then it gets the user that its package made."""
    if os.geteuid() != 0:
        return {}
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("running as root, and there is no user postgres")
    return {"user": found.pw_uid, "group": found.pw_gid}


@pytest.fixture(scope="module")
def database():
    """The URL of an empty database."""
    initdb, postgres = _find("initdb"), _find("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL here: install the package postgresql")
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="moiety-pg-"))
    if owner:
        os.chown(folder, owner["user"], owner["group"])
    data = ["-D", str(folder / "data")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **owner}
    subprocess.run([initdb, *data, "-U", "moiety", "-A", "trust", "--no-sync"], check=True, **quiet)
    settings = ["-c", "listen_addresses=", "-k", str(folder), "-p", str(PORT)]
    process = subprocess.Popen([postgres, *data, *settings], **quiet)
    url = f"postgresql+psycopg://moiety@/postgres?host={folder}&port={PORT}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder)


def _wait(url: str, process: subprocess.Popen) -> None:
    import psycopg

    address = url.replace("+psycopg", "")
    while process.poll() is None:
        try:
            psycopg.connect(address).close()
        except psycopg.OperationalError:
            continue
        return
    pytest.fail("PostgreSQL did not start")


def test_bills_of_many_writers_add_up(database):
    bills = [
        Bill(f"k{number % 3}", 3, 2, {"anchor": 1.5, "amy": 0.5}, "2030-01-01T00:00:00Z")
        for number in range(60)
    ]

    async def write_all(books):
        for at in range(0, len(bills), 5):  # several transactions each
            await asyncio.gather(*(books.write(bill) for bill in bills[at : at + 5]))

    def one_server(_number):
        books = Books(database)
        try:
            asyncio.run(write_all(books))
            assert books.problem is None
        finally:
            books.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one_server, range(4)))
    rows = [row for row in read_usage(database) if row["hour"].startswith("2030")]
    assert len(rows) == 6
    assert {(row["requests"], row["prompt_tokens"]) for row in rows} == {(80, 240)}
    assert {(row["expert"], row["share_sum"]) for row in rows} == {("anchor", 120.0), ("amy", 40.0)}


def test_two_servers_that_write_at_once_lose_nothing_that_was_told(database, release, tmp_path):
    servers = [start(release, tmp_path, url=database) for _ in range(2)]

    def ask(number):
        process, url = servers[number % 2]
        told = 0
        with httpx.Client(timeout=60) as http:
            for _ in range(15):
                try:
                    told += http.post(url + "/v1/completions", json=BODY).status_code == 200
                except httpx.HTTPError:
                    break
                if number == 1 and told == 10:
                    process.kill()
        return told

    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(ask, range(6)))
    assert [told[number] for number in (0, 2, 4)] == [15, 15, 15]
    assert told[1] == 10
    for process, _ in servers:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stderr.close()
    rows = by_expert([row for row in read_usage(database) if row["key"] == "local"])
    counts = {row["requests"] for row in rows.values()}
    assert len(counts) == 1, "a request is written whole"
    # Killed between the commit and the answer: written, and not told.
    assert sum(told) <= counts.pop() <= sum(told) + 3

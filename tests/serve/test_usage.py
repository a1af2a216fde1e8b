"""Usage is what answers told, added up; it survives kill -9, and tells nothing of tokens."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pyarrow import parquet
from tests.serve.conftest import NAME, serving, settled, told_server
from tests.serve.engines import steps

from moiety.errors import ConfigError, StateError
from moiety.serve import ServePlan, house, load_engine, usage
from moiety.serve.jobs import Ending
from moiety.serve.usage import COLUMNS, Bill, Books, read_usage, sum_up

BODY = {"model": NAME, "prompt": "ba ba", "max_tokens": 6, "temperature": 0}


def by_expert(rows):
    found: dict[str, Counter] = {}
    for row in rows:
        found.setdefault(row["expert"], Counter()).update({name: row[name] for name in COLUMNS[3:]})
    return found


def test_usage_is_what_the_answers_told(release, tmp_path):
    url = f"sqlite:///{tmp_path}/usage.sqlite"
    expected: dict[str, Counter] = {}
    with serving(
        ServePlan(release, port=0, name=NAME, usage=url), lambda: load_engine(release)
    ) as live:
        for more in (
            {},
            {"model": f"{NAME}+amy"},
            {"n": 2, "seed": 1, "temperature": 1.0},
            {"echo": True},
        ):
            done = live.post(json=BODY | more).json()
            told = done["usage"]
            for expert, share in done["moiety"]["shares"].items():
                expected.setdefault(expert, Counter()).update(
                    requests=1,
                    prompt_tokens=told["prompt_tokens"],
                    completion_tokens=told["completion_tokens"],
                    share_sum=share * told["completion_tokens"],
                )
        assert live.post(json=BODY | {"n": 0}).status_code == 400
    rows = read_usage(url)
    assert {row["key"] for row in rows} == {"local"}
    found = by_expert(rows)
    assert set(found) == set(expected)
    for expert, counts in expected.items():
        assert dict(found[expert]) == pytest.approx(dict(counts))
    assert sum(one["share_sum"] for one in found.values()) == pytest.approx(
        found["anchor"]["completion_tokens"], rel=1e-4
    )


def test_nothing_of_a_text_is_stored(release, tmp_path):
    url = f"sqlite:///{tmp_path}/usage.sqlite"
    plan = ServePlan(release, port=0, name=NAME, usage=url)
    with serving(plan, lambda: load_engine(release)) as live:
        ask = BODY | {"prompt": "mo lito nusa", "logprobs": 3, "moiety": {"routing": True}}
        assert live.post(json=ask).status_code == 200
    for path in tmp_path.iterdir():
        assert b"lito" not in path.read_bytes()
    with sqlite3.connect(tmp_path / "usage.sqlite") as base:
        (tables,) = base.execute("select group_concat(name) from sqlite_master where type='table'")
        columns = [row[1] for row in base.execute("pragma table_info(moiety_usage)")]
    base.close()
    assert tables == ("moiety_usage",)
    assert columns == list(COLUMNS)


def test_bills_add_up_from_several_writers(tmp_path):
    url = f"sqlite:///{tmp_path}/usage.sqlite"
    bills = [Bill("k", 3, 2, {"anchor": 1.5, "amy": 0.5}, "2030-01-01T00:00:00Z")] * 40

    async def write_all(books):
        await asyncio.gather(*(books.write(bill) for bill in bills))

    def one_server(_number):
        books = Books(url)
        try:
            asyncio.run(write_all(books))
        finally:
            books.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one_server, range(4)))
    assert read_usage(url) == sum_up(bills * 4)


def test_exports_hold_every_row(tmp_path):
    url = f"sqlite:///{tmp_path}/usage.sqlite"
    books = Books(url)
    hours = ("2030-01-01T00:00:00Z", "2030-01-01T01:00:00Z")

    async def write():
        for hour in hours:
            await books.write(Bill("k", 3, 2, {"anchor": 1.5, "amy": 0.5}, hour))

    asyncio.run(write())
    books.close()
    rows = read_usage(url)
    assert [row["hour"] for row in rows] == [hours[0]] * 2 + [hours[1]] * 2
    assert usage.export_usage(url, tmp_path / "a.csv") == 4
    with (tmp_path / "a.csv").open() as file:
        told = [
            {k: v if k in COLUMNS[:3] else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
    assert told == rows
    usage.export_usage(url, tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == rows
    for out, error in ((tmp_path / "a.csv", StateError), (tmp_path / "a.xls", ConfigError)):
        with pytest.raises(error):
            usage.export_usage(url, out)
    with pytest.raises(ConfigError, match="no usage was written here"):
        usage.export_usage(f"sqlite:///{tmp_path}/none.sqlite", tmp_path / "b.csv")


@pytest.mark.parametrize("url", ["nothing", "nosuch://x/y", "sqlite:////no/such/folder/x.sqlite"])
def test_a_database_that_is_none(url):
    with pytest.raises(ConfigError) as caught:
        Books(url)
    assert "secret" not in str(caught.value)


def test_a_password_in_a_url_is_not_told():
    with pytest.raises(ConfigError) as caught:
        Books("nosuch://me:secret@host/base")
    assert "secret" not in str(caught.value)


def start(release, place, *more, url=None, **how):
    """``moiety serve`` as a process of its own, on a free port."""
    words = [
        "serve",
        release,
        "--port",
        "0",
        "--name",
        NAME,
        "--usage",
        url or f"sqlite:///{place}/u.sqlite",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "moiety", *map(str, words), *more],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **how,
    )
    for line in process.stderr:
        if line.startswith("ready"):
            return process, line.split()[-1].removesuffix("/v1")
    raise AssertionError(process.wait())


def test_kill_9_loses_nothing_that_was_told(release, tmp_path):
    process, url = start(release, tmp_path)
    told, stop = Counter(), threading.Event()

    def ask(stream):
        with httpx.Client(timeout=30) as http:
            while not stop.is_set():
                try:
                    answer = http.post(url + "/v1/completions", json=BODY | {"stream": stream})
                except httpx.HTTPError:
                    return
                if answer.status_code == 200 and (not stream or answer.text.endswith("[DONE]\n\n")):
                    told.update([stream])

    threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stop.set()
    for thread in threads:
        thread.join()
    process.stderr.close()
    rows = by_expert(read_usage(f"sqlite:///{tmp_path}/u.sqlite"))
    count = rows["anchor"]["requests"]
    assert told[True] > 0
    assert told[False] > 0
    assert told.total() <= count <= told.total() + len(threads)
    for expert in rows.values():
        assert expert["requests"] == count, "a request is written whole"

    process, url = start(release, tmp_path)
    assert httpx.post(url + "/v1/completions", json=BODY, timeout=30).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "stopped; usage is written" in process.stderr.read()
    process.stderr.close()
    rows = by_expert(read_usage(f"sqlite:///{tmp_path}/u.sqlite"))
    assert rows["anchor"]["requests"] == count + 1


DISK_BYTES = 96 * 2**10


def test_a_full_disk_is_told_and_what_was_told_is_kept(release, tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))

    process, url = start(release, tmp_path, preexec_fn=small_disk)
    told, refused = 0, None
    with httpx.Client(timeout=30) as http:
        while refused is None:
            answer = http.post(url + "/v1/completions", json=BODY)
            told += answer.status_code == 200
            refused = answer if answer.status_code != 200 else None
            assert told < 1000
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "usage_not_written")
        health = http.get(url + "/health")
        assert health.status_code == 503
        assert health.json()["why"].startswith("usage cannot be written: ")
        refused = http.post(url + "/v1/completions", json=BODY | {"stream": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert "usage cannot be written" in refused.json()["error"]["message"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert told > 0
    process, url = start(release, tmp_path)
    assert httpx.post(url + "/v1/completions", json=BODY, timeout=30).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stderr.close()
    rows = by_expert(read_usage(f"sqlite:///{tmp_path}/u.sqlite"))
    # The one that was refused may have been written after all: it is owed.
    assert {row["requests"] for row in rows.values()} <= {told + 1, told + 2}


def test_what_cannot_be_written_is_owed_nobody_else_is_served_and_then_it_is_written(
    release, tmp_path, monkeypatch
):
    monkeypatch.setattr(usage, "LOCK_SECONDS", 0)
    monkeypatch.setattr(usage, "RETRY_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path}/u.sqlite"
    plan = ServePlan(release, port=0, name=NAME, usage=url)
    with serving(plan, lambda: load_engine(release)) as live:
        base = sqlite3.connect(tmp_path / "u.sqlite", isolation_level=None)
        base.execute("begin immediate")
        streamed = live.post(json=BODY | {"stream": True}).text
        assert '"code":"usage_not_written"' in streamed
        assert '"finish_reason":"' not in streamed, "its end was not told"
        told = [json.loads(line[6:]) for line in streamed.split("\n\n")[:-2]]
        assert sum(len(one.get("choices", ())) for one in told) > 0, "but its text was"
        assert live.post(json=BODY).status_code == 503
        base.rollback()
        base.close()
        assert settled(lambda: live.get("/health").status_code == 200, 5)
        assert live.post(json=BODY).status_code == 200
    (anchor, *_) = read_usage(url)
    assert (anchor["requests"], anchor["completion_tokens"]) == (2, 12)


def test_only_the_operator_may_read_who_asked_whom(tmp_path):
    books = Books(f"sqlite:///{tmp_path}/u.sqlite")
    asyncio.run(books.write(Bill("k", 3, 2, {"anchor": 2.0})))
    files = list(tmp_path.iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    books.close()


def test_while_a_stream_runs_what_it_has_told_comes_into_the_books(release, tmp_path, monkeypatch):
    monkeypatch.setattr(house, "CHECK_SECONDS", 0.05)

    def forty(job):
        yield from steps(job, [5] * 40)
        yield Ending("length")

    url, body = f"sqlite:///{tmp_path}/u.sqlite", BODY | {"stream": True, "max_tokens": 40}
    with (
        told_server(release, tmp_path, forty, wait=0.02, name=NAME) as live,
        live.http.stream("POST", live.url + "/v1/completions", json=body) as answer,
    ):
        told = (line for line in answer.iter_lines() if line.startswith("data: {"))
        seen = [read_usage(url) for _ in told]
        assert live.get("/metrics").text.count(
            'moiety_requests_total{expert="amy",key="local"} 1.0'
        )
    early = [rows[0] for rows in seen[:30] if rows]
    assert {row["requests"] for row in early} == {1}
    assert len({row["completion_tokens"] for row in early}) > 3
    rows = read_usage(url)
    assert {row["requests"] for row in rows} == {1}
    assert {row["completion_tokens"] for row in rows} == {40}
    assert {row["prompt_tokens"] for row in rows} == {early[0]["prompt_tokens"]}
    assert sum(row["share_sum"] for row in rows) == pytest.approx(40)


def test_a_database_that_may_only_be_read_is_told_and_so_is_what_is_lost(release, tmp_path):
    Books(f"sqlite:///{tmp_path}/u.sqlite").close()
    read_only = f"sqlite:///file:{tmp_path}/u.sqlite?mode=ro&uri=true"
    process, url = start(release, tmp_path, url=read_only)
    assert httpx.get(url + "/health", timeout=30).status_code == 200
    assert httpx.post(url + "/v1/completions", json=BODY, timeout=30).status_code == 503
    assert "readonly" in httpx.get(url + "/health", timeout=30).json()["why"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 2
    told = process.stderr.read()
    process.stderr.close()
    assert "requests whose usage is lost: 1" in told
    assert "Traceback" not in told


def test_a_port_that_is_taken_is_an_error(release, tmp_path):
    process, url = start(release, tmp_path)
    try:
        port = url.rpartition(":")[2]
        words = ["serve", str(release), "--port", port, "--usage", f"sqlite:///{tmp_path}/v.sqlite"]
        done = subprocess.run(
            [sys.executable, "-m", "moiety", *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert "cannot listen" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        process.stderr.close()


def test_keys_on_the_command_line_are_those_of_a_policy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "moiety", "serve-key", "app", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, last = done.stdout.splitlines()
    told = json.loads(last)
    (tmp_path / "policy.toml").write_text("\n".join(lines), "utf-8")
    from moiety.serve.policy import read_policy

    found = read_policy(tmp_path / "policy.toml").find(told["key"])
    assert found.id == "app"
    assert told["key"] not in "".join(lines)

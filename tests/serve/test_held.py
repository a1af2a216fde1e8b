"""Connections that somebody holds: bodies nobody reads, answers nobody takes, and too many."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import json
import socket
import time
from contextlib import ExitStack

import pytest
from starlette.datastructures import Headers
from tests.serve.conftest import NAME, policed, settled, told_server
from tests.serve.engines import short, steps
from tests.serve.test_lines import HEAD, connect, read_all, whole

from moiety.serve import lines

LONG = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
ASK = {"model": NAME, "prompt": "ba", "max_tokens": 100}


def endless(job):
    return steps(job, itertools.cycle([40, 41, 42]))


def hundred(job):
    yield from itertools.islice(endless(job), 100)
    yield from short(job)


@pytest.fixture
def quick(monkeypatch):
    """Seconds are tenths."""
    monkeypatch.setattr(lines, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(lines, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(lines, "LINGER_SECONDS", 0.5)


def held(live) -> int:
    return len(live.server._listeners[0].server_state.connections)


def slow_reader(live) -> socket.socket:
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(("127.0.0.1", live.server.port))
    return line


def test_an_answer_before_the_body_was_read_is_the_last(release, tmp_path, quick):
    with told_server(release, tmp_path, short, name=NAME) as live, connect(live) as line:
        line.sendall(LONG)
        started = time.monotonic()
        head = line.recv(65536).lower()
        assert head.startswith(b"http/1.1 404")
        assert b"\r\nconnection: close\r\n" in head
        assert time.monotonic() - started < 0.4, "it is told at once"
        line.sendall(b"a")
        assert settled(lambda: held(live) == 0, 5)


def test_who_still_sends_hears_the_answer(release, tmp_path, quick):
    with told_server(release, tmp_path, short, name=NAME) as live, connect(live) as line:
        line.sendall(LONG)
        time.sleep(0.2)
        line.sendall(b"a" * 1_000_000)
        told = read_all(line)
        assert told.startswith(b"HTTP/1.1 404")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_found"


def test_answers_that_nobody_takes_are_not_kept(release, tmp_path, quick):
    with (
        told_server(release, tmp_path, hundred, name=NAME) as live,
        slow_reader(live) as many,
        slow_reader(live) as one,
    ):
        many.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        one.sendall(whole(ASK | {"n": 100, "logprobs": 5}, b"Connection: close\r\n"))
        assert settled(lambda: held(live) == 2)
        assert settled(lambda: held(live) == 0, 10)


def test_who_takes_a_long_answer_slowly_gets_all_of_it(release, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(lines, "WAIT_SECONDS", 2.5)
    ask = ASK | {"n": 100, "logprobs": 5}
    with told_server(release, tmp_path, hundred, name=NAME) as live:
        size = len(live.post(json=ask).content)
        with slow_reader(live) as line:
            line.sendall(whole(ask, b"Connection: close\r\n"))
            got, started = 0, time.monotonic()
            while part := line.recv(size // 12):
                got += len(part)
                time.sleep(4 * len(part) / size)
            assert time.monotonic() - started > 3
        assert got > size


def test_more_than_there_may_be_take_no_place_from_who_is_served(
    release, tmp_path, monkeypatch, quick
):
    monkeypatch.setattr(lines, "WAIT_SECONDS", 30.0)
    monkeypatch.setattr(lines, "LINES_MAX", 8)
    with (
        told_server(release, tmp_path, endless, 0.01, name=NAME) as live,
        connect(live) as served,
        ExitStack() as crowd,
    ):
        live.house.engine.max_context = 10**7
        served.sendall(whole(ASK | {"stream": True, "max_tokens": 10**6}))
        assert settled(lambda: live.house.runs.now)
        for _ in range(30):
            crowd.enter_context(connect(live)).sendall(HEAD[:9])
        assert settled(lambda: held(live) == 8)
        assert live.get("/health").status_code == 200
        assert live.admin("GET", "/admin/roster").status_code == 200
        served.recv(65536)
        assert b"data: " in served.recv(65536)


def test_a_hang_up_is_heard_behind_another_request(release, tmp_path):
    with told_server(release, tmp_path, endless, 0.02, name=NAME) as live:
        engine = live.house.engine
        with connect(live) as line:
            line.sendall(whole(ASK | {"n": 3}))
            assert settled(lambda: len(engine.streams) == 3)
            line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.1)
        assert settled(lambda: all(one.cancelled.is_set() for one in engine.streams), 2)
        assert settled(lambda: not live.house.runs.now)


def test_much_behind_a_request_is_too_much(release, tmp_path):
    with told_server(release, tmp_path, endless, 0.02, name=NAME) as live:
        with connect(live) as line:
            line.sendall(whole(ASK))
            assert settled(lambda: live.house.runs.now)
            with pytest.raises(OSError, match=r"reset|Broken"):
                line.sendall(LONG + b"a" * 20_000_000)
        assert settled(lambda: not live.house.runs.now)


def test_what_is_no_http_behind_an_answer_is_not_talked_of(release, tmp_path, quick, caplog):
    with told_server(release, tmp_path, short, name=NAME) as live, connect(live) as line:
        head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        line.sendall(head)
        assert line.recv(65536).startswith(b"HTTP/1.1 404")
        line.sendall(b"ZZZ\r\nZZZ\r\n\r\n")
        assert settled(lambda: held(live) == 0, 0.4)
    assert caplog.records == []


def test_nothing_of_a_refused_request_is_kept(release_with_terms, tmp_path):
    with policed(release_with_terms, tmp_path, {"app": {}}) as (live, *_):
        for _ in range(50):
            assert live.get("/v1/models").status_code == 401
        gc.collect()
        assert sum(type(one) is Headers for one in gc.get_objects()) < 10


def test_errors_by_thousands_are_told_once(caplog):
    said: list[str] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lines.once_a_minute(said.append))
    full = OSError(errno.EMFILE, "Too many open files")
    for _ in range(1000):
        message = "socket.accept() out of system resource"
        loop.call_exception_handler({"message": message, "exception": full})
    assert said == ["connections cannot be taken: Too many open files"]
    assert caplog.records == []
    loop.call_exception_handler({"message": "something else"})
    assert [one.message for one in caplog.records] == ["something else"]
    loop.close()

"""What goes wrong on a connection: hang-ups in every phase, heads that never end, lying lengths."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time

import pytest
from tests.serve.conftest import NAME, serving, settled

from moiety.merge import load_release
from moiety.serve import ServePlan, lines
from moiety.serve.engine import Limits, LocalEngine

BODY = {"model": NAME, "prompt": "ba", "max_tokens": 8, "temperature": 0}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def whole(body=BODY, more: bytes = b"") -> bytes:
    data = json.dumps(body).encode()
    return HEAD + more + b"Content-Length: %d\r\n\r\n" % len(data) + data


def connect(live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.server.port), timeout=20)


def read_all(line: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    parts = []
    while part := line.recv(65536):
        parts.append(part)
    return b"".join(parts)


def say(live, data: bytes) -> bytes:
    with connect(live) as line:
        line.sendall(data)
        return read_all(line)


@pytest.fixture
def server(release, tmp_path):
    """A server of its own, with two places."""
    plan = ServePlan(release, port=0, name=NAME, usage=f"sqlite:///{tmp_path}/u.sqlite")
    limits = Limits(places=2, waiting=8)
    with serving(plan, lambda: LocalEngine(load_release(release), limits)) as live:
        yield live


def trickle(line: socket.socket) -> None:
    for byte in HEAD * 10:
        try:
            line.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("it went on listening")


def test_a_head_that_never_ends_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(lines, "WAIT_SECONDS", 0.5)
    monkeypatch.setattr(lines, "LOOK_SECONDS", 0.1)
    for begun in (b"", b"GET /health HT", HEAD):
        with connect(server) as line:
            line.sendall(begun)
            started = time.monotonic()
            assert read_all(line) == b""
            assert 0.3 < time.monotonic() - started < 5
    with connect(server) as line:
        trickle(line)
    with connect(server) as line:
        line.sendall(whole())
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        trickle(line)


def test_a_whole_request_is_not_hurried(server, monkeypatch):
    monkeypatch.setattr(lines, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(lines, "LOOK_SECONDS", 0.1)
    step = server.house.engine._stepper.step
    server.house.engine._stepper.step = lambda: time.sleep(0.1) or step()
    with connect(server) as line:
        line.sendall(whole(more=b"Connection: close\r\n"))
        assert read_all(line).startswith(b"HTTP/1.1 200")


def test_requests_sent_at_once_are_answered_in_order(server):
    asked = [BODY, BODY | {"prompt": "mo", "max_tokens": 3}, BODY | {"n": 0}]
    alone = [server.post(json=body).json() for body in asked]
    told = say(server, b"".join(map(whole, asked)) + whole(more=b"Connection: close\r\n"))
    bodies = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in told.split(b"HTTP/1.1 ")[1:]]
    assert len(bodies) == 4
    for one, other in zip(bodies, [*alone, alone[0]], strict=True):
        assert one.get("choices") == other.get("choices")
        assert one.get("error") == other.get("error")


def test_what_is_no_http_is_refused_in_the_envelope(server):
    for text in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1 and more\r\n\r\n"):
        head, _, body = say(server, text).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["code"] == "not_http"


def test_lengths_that_lie(server):
    data = json.dumps(BODY).encode()
    short = say(server, HEAD + b"Connection: close\r\nContent-Length: 10\r\n\r\n" + data)
    assert short.startswith(b"HTTP/1.1 400")
    assert b"200 OK" not in short
    with connect(server) as line:
        line.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + data)
        line.shutdown(socket.SHUT_WR)
        assert b"200 OK" not in read_all(line)
    chunked = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    for chunks in (b"zz\r\n" + data, b"5\r\n" + data + b"\r\n0\r\n\r\n", b"-1\r\n\r\n"):
        told = say(server, chunked + chunks)
        assert b"200 OK" not in told
    assert not server.house.runs.now
    assert server.house.engine.load().generated_tokens == 0


def leave(line: socket.socket, *, rudely: bool) -> None:
    """Hangs up: with a goodbye, or with a reset."""
    if rudely:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


@pytest.mark.parametrize("rudely", [False, True])
def test_whoever_hangs_up_whenever_leaves_nothing_behind(server, rudely):
    loop = server.server._listeners[0].servers[0].get_loop()
    step = server.house.engine._stepper.step
    expected = server.post(json=BODY).json()["choices"]
    server.http.close()
    assert settled(lambda: not server.server._listeners[0].server_state.connections)
    tasks = len(asyncio.all_tasks(loop))
    server.house.engine._stepper.step = lambda: time.sleep(0.02) or step()
    long = [BODY | {"max_tokens": 100, "stream": stream} for stream in (False, True)]
    beginnings = [HEAD[:9], HEAD, whole()[:-5], *map(whole, long)]
    for text in beginnings * 2:
        # More at once than there are places: some wait in the engine's queue when they leave.
        crowd = [connect(server) for _ in range(4)]
        for line in crowd:
            line.sendall(text)
        time.sleep(0.2)
        for line in crowd:
            leave(line, rudely=rudely)
    with connect(server) as line:
        line.sendall(whole(long[1]))
        line.recv(100)
        leave(line, rudely=rudely)

    def clean() -> bool:
        load = server.house.engine.load()
        listener = server.server._listeners[0]
        return (
            (load.running, load.waiting) == (0, 0)
            and not server.house.runs.now
            and not listener.server_state.connections
            and len(asyncio.all_tasks(loop)) == tasks
        )

    assert settled(clean, 20), (server.house.engine.load(), asyncio.all_tasks(loop))
    assert server.house.limits._running["local"] == 0
    assert (
        json.loads(say(server, whole(more=b"Connection: close\r\n")).split(b"\r\n\r\n")[1])[
            "choices"
        ]
        == expected
    )

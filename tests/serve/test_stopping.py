"""The end of a server: a signal lets requests end, a second one does not, and nothing hangs."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.serve.conftest import NAME, SET, settled, told_server
from tests.serve.engines import short
from tests.serve.test_lines import HEAD, connect, read_all, whole

from moiety.serve import server
from moiety.serve.usage import read_usage

SERVE = """
import itertools, sys, time
from tests.serve.engines import ToldEngine, steps
from moiety import cli, serve
from moiety.serve import server

class Engine(ToldEngine):
    max_context = 10**7

    def close(self):
        time.sleep({close})

def load(*_args, **_how):
    time.sleep({load})
    return Engine({names}, lambda job: steps(job, itertools.cycle([40, 41, 42])), 0.01)

server.GRACE_SECONDS, server.TELL_SECONDS, server.HURRY_SECONDS = {grace}, 1, {hurry}
serve.load_engine = load
cli.main(sys.argv[1:])
"""
ROOT = Path(__file__).parents[2]
ASK = {"model": NAME, "prompt": "ba", "max_tokens": 10**6}


class Process:
    """``moiety serve`` as a process of its own, with an engine that goes on for ever."""

    def __init__(self, release, place, load=0, close=0, grace=60, hurry=5):
        self.url = f"sqlite:///{place}/u.sqlite"
        text = SERVE.format(names=SET, load=load, close=close, grace=grace, hurry=hurry)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["serve", str(release), "--name", NAME, "--usage", self.url]
        command = [sys.executable, "-c", text, *words, "--port", str(self.port)]
        self.log = place / "log"
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(command, cwd=ROOT, stderr=log)
        assert settled(lambda: "ready" in self.log.read_text() or (load and self.answers()), 60)

    def answers(self) -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(self, **more) -> Asked:
        return Asked(self.port, whole(ASK | more))


class Asked(threading.Thread):
    """A request, and what has come of its answer."""

    def __init__(self, port: int, data: bytes) -> None:
        super().__init__(daemon=True)
        self.line = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.line.sendall(data)
        self.told = b""
        self.start()

    def run(self) -> None:
        with self.line:
            while part := self.line.recv(65536):
                self.told += part


@pytest.fixture
def process(release, tmp_path):
    started: list[Process] = []

    def start(**how) -> Process:
        started.append(Process(release, tmp_path, **how))
        return started[-1]

    yield start
    for one in started:
        one.popen.kill()
        one.popen.wait()


def ended(process: Process, asked: list[Asked], code: int) -> None:
    """It has ended so; all were told why, in their form; what they were told is billed."""
    assert process.popen.wait(20) == code
    tokens = 0
    for one in asked:
        one.join(5)
        *rest, last = one.told.decode().partition("\r\n\r\n")[2].split("data: ")
        if one.told.startswith(b"HTTP/1.1 503"):
            assert json.loads(last)["error"]["code"] == "stopping"
            continue
        assert one.told.startswith(b"HTTP/1.1 200")
        assert last.startswith("[DONE]")
        assert '"code":"stopping"' in rest[-1]
        tokens += len(rest) - 2
    (row,) = [row for row in read_usage(process.url) if row["expert"] == "anchor"]
    assert row["requests"] == len(asked)
    assert row["completion_tokens"] >= tokens > len(asked)
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_bills(process, number):
    server_ = process()
    asked = [server_.ask(stream=True) for _ in range(6)] + [server_.ask(n=2) for _ in range(3)]
    assert settled(lambda: all(one.told.count(b"data: ") > 5 for one in asked[:6]))
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", server_.port))
        idle.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        server_.popen.send_signal(number)
        had = [len(one.told) for one in asked[:6]]
        assert settled(lambda: not server_.answers(), 5)
        pairs = list(zip(asked, had, strict=False))
        assert settled(lambda: all(len(one.told) > size for one, size in pairs)), "they go on"
        assert server_.popen.poll() is None
        server_.popen.send_signal(number)
        ended(server_, asked, 130)
    assert "stopped at once; usage is written" in server_.log.read_text()


def test_one_signal_lets_requests_go_on_for_a_while(process):
    server_ = process(grace=1)
    asked = [server_.ask(stream=True) for _ in range(3)] + [server_.ask()]
    assert settled(lambda: all(b"data: " in one.told for one in asked[:3]))
    server_.popen.send_signal(signal.SIGTERM)
    ended(server_, asked, 0)


@pytest.mark.parametrize("stuck", ["load", "close"])
def test_what_hangs_does_not_keep_a_second_signal(process, stuck):
    server_ = process(**{stuck: 1000}, hurry=1)
    server_.popen.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert server_.popen.poll() is None
    server_.popen.send_signal(signal.SIGINT)
    assert server_.popen.wait(10) == 130
    assert "Traceback" not in server_.log.read_text()


def test_who_is_not_yet_served_is_told_too(release, tmp_path, monkeypatch, caplog):
    for name in ("GRACE_SECONDS", "TELL_SECONDS"):
        monkeypatch.setattr(server, name, 0.3)
    with told_server(release, tmp_path, short, name=NAME) as live:
        encode = live.house.texts.encode
        begun = threading.Event()

        def slow(*args):
            begun.set()
            time.sleep(1.5)
            return encode(*args)

        monkeypatch.setattr(live.house.texts, "encode", slow)
        with connect(live) as first, connect(live) as second:
            first.sendall(whole())
            second.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            assert begun.wait(10)
            live.server.stop()
            for line in (first, second):
                told = read_all(line)
                assert told.startswith(b"HTTP/1.1 503")
                body = json.loads(told.partition(b"\r\n\r\n")[2])
                assert body["error"]["code"] == "stopping"
    assert caplog.records == []

"""Long answers: the server answers others while it writes one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.serve.conftest import NAME, told_server

from moiety.serve import answering
from moiety.serve.bodies import Form
from moiety.serve.jobs import Ending, Job, Step

TOP = tuple((token, -float(token)) for token in range(1, 6))
BODY = {"model": NAME, "prompt": "ba", "max_tokens": 110, "n": 5, "logprobs": 5}


def long(job: Job) -> Iterator[Step | Ending]:
    """As many tokens as may be, each with five alternatives."""
    share = 1 / len(job.slots)
    for token in range(job.max_tokens):
        yield Step(5 + token % 50, -0.5, TOP, (share,) * len(job.slots))
    yield Ending("length")


@pytest.fixture(scope="module")
def server(release, tmp_path_factory):
    with told_server(release, tmp_path_factory.mktemp("long"), long, name=NAME) as live:
        yield live


def test_a_long_answer_keeps_nobody_waiting(server, monkeypatch):
    write, came, may_go, answers = Form.whole, threading.Event(), threading.Event(), []

    def slow(*what):
        came.set()
        assert may_go.wait(60)
        return write(*what)

    monkeypatch.setattr(Form, "whole", slow)
    asking = threading.Thread(target=lambda: answers.append(server.post(json=BODY)))
    asking.start()
    assert came.wait(60)
    try:
        assert server.http.get(f"{server.url}/health", timeout=5).status_code == 200
    finally:
        may_go.set()
        asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 550


def test_a_long_answer_is_written_as_a_short_one(server, monkeypatch):
    found = []
    for most in (0, 10**9):
        monkeypatch.setattr(answering, "LONG_PIECES", most)
        found.append(server.post(json=BODY | {"echo": True}).json()["choices"])
    assert len(found[0]) == 5
    assert found[0] == found[1]

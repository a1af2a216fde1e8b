"""What goes wrong: clients that hang up or do not read, engines that break, too many at once."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from tests.serve.conftest import NAME, serving, settled
from tests.serve.engines import ToldEngine, steps

from moiety.merge import load_release
from moiety.serve import ServePlan, door, load_engine
from moiety.serve.engine import Limits, LocalEngine
from moiety.serve.jobs import Ending, Step

BODY = {"model": NAME, "prompt": "ba", "max_tokens": 20, "temperature": 0}
SLOTS = ("anchor", "amy", "bob", "cat")


def plan_of(release, tmp_path, **how):
    usage = f"sqlite:///{tmp_path}/usage.sqlite"
    return ServePlan(release, port=0, name=NAME, usage=usage, **how)


def told(release, tmp_path, script, wait=0.0):
    """A server whose engine does as told."""
    engine = ToldEngine(SLOTS, script, wait)
    return serving(plan_of(release, tmp_path), lambda: engine)


def endless(job):
    return steps(job, itertools.cycle([40, 41, 42]))


def events_of(answer: httpx.Response) -> list:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def breaking(job):
    yield from steps(job, [40])
    yield Ending("failed", "the model could not go on")


def raising(job):
    yield from steps(job, [40])
    raise ZeroDivisionError


def withdrawn(job):
    yield from steps(job, [40])
    yield Ending("withdrawn", "amy was withdrawn")


CASES = [(breaking, 500, "engine_failed"), (withdrawn, 403, "expert_withdrawn")]


@pytest.mark.parametrize(("script", "status", "code"), CASES)
def test_an_engine_that_breaks_is_told_in_the_envelope(release, tmp_path, script, status, code):
    with told(release, tmp_path, script) as live:
        answer = live.post(json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        streamed = live.post(json=BODY | {"stream": True, "n": 2})
        assert streamed.status_code == 200
        *_, last = events_of(streamed)
        assert last["error"]["code"] == code
        assert set(last["error"]) == {"message", "type", "param", "code"}
        with pytest.raises(openai.APIError, match=last["error"]["message"]) as caught:
            list(live.client().completions.create(**BODY, stream=True))
        assert (type(caught.value), caught.value.code) == (openai.APIError, code)
        assert live.house.limits._running["local"] == 0


def test_our_own_bug_is_a_500_that_tells_nothing(release, tmp_path, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError("secret")

    with told(release, tmp_path, endless) as live:
        with monkeypatch.context() as patch:
            patch.setattr(live.house.served, "choose", broken)
            answer = live.post(json=BODY)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text
        with monkeypatch.context() as patch:
            patch.setattr("moiety.serve.choices.Choice.push", broken)
            assert live.post(json=BODY).status_code == 500
            *_, last = events_of(live.post(json=BODY | {"stream": True}))
        assert last["error"]["code"] == "internal_error"
        assert "secret" not in str(last)
        assert not live.house.runs.now


def test_who_hangs_up_frees_the_place(release, tmp_path):
    with told(release, tmp_path, endless, wait=0.02) as live:
        engine = live.house.engine
        for stream in (True, False):
            begun = len(engine.streams)
            body = json.dumps(BODY | {"stream": stream, "n": 3, "max_tokens": 100}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            with socket.create_connection(("127.0.0.1", live.server.port)) as line:
                line.sendall(head + body)
                assert settled(lambda n=begun: len(engine.streams) == n + 3)
            mine = engine.streams[begun:]
            assert settled(lambda some=mine: all(one.cancelled.is_set() for one in some))
            assert settled(lambda: not live.house.runs.now)
        assert live.house.limits._running["local"] == 0
        text = live.get("/metrics").text
        assert 'moiety_requests_total{expert="amy",key="local"} 2.0' in text, "it was used"


@contextlib.contextmanager
def at_work(live):
    """A long answer comes slowly from the real engine, until the block ends."""
    step = live.house.engine._stepper.step
    live.house.engine._stepper.step = lambda: time.sleep(0.1) or step()
    ask = BODY | {"max_tokens": 100, "stream": True}
    with live.http.stream("POST", live.url + "/v1/completions", json=ask) as answer:
        coming = answer.iter_raw()  # kept: without its reader the client hangs up
        next(coming)
        yield


def test_a_place_in_the_real_engine_is_free_again(release, tmp_path, caplog):
    limits = Limits(places=1, waiting=0)
    plan = plan_of(release, tmp_path)
    with serving(plan, lambda: LocalEngine(load_release(release), limits)) as live:
        with at_work(live):
            refused = live.post(json=BODY)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "overloaded"
            assert live.post(json=BODY | {"n": 2}).status_code == 400, "never fits"
        assert settled(lambda: live.post(json=BODY).status_code == 200, 5)
        assert live.house.engine.load().running == 0
    assert caplog.records == [], "a step of nobody is no failure"


def test_many_choices_are_taken_whole_or_not_at_all(release, tmp_path):
    limits = Limits(places=1, waiting=2)
    plan = plan_of(release, tmp_path)
    with serving(plan, lambda: LocalEngine(load_release(release), limits)) as live:
        with at_work(live):
            assert live.post(json=BODY | {"n": 3}).status_code == 429
            assert settled(lambda: live.house.engine.load().waiting == 0)
            assert live.house.limits._running["local"] == 1
        assert settled(lambda: live.house.limits._running["local"] == 0)
        assert settled(lambda: live.house.engine.load().running == 0)
        assert live.post(json=BODY | {"n": 3}).status_code == 200


def test_a_slow_reader_holds_little_and_is_dropped(release, tmp_path, monkeypatch):
    monkeypatch.setattr("moiety.serve.lines.WAIT_SECONDS", 1.0)
    monkeypatch.setattr("moiety.serve.lines.LOOK_SECONDS", 0.1)
    with told(release, tmp_path, endless) as live:
        engine = live.house.engine
        engine.max_context = 10**7
        ask = BODY | {"stream": True, "max_tokens": 10**6, "logprobs": 5}
        body = json.dumps(ask).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", live.server.port))
            line.sendall(head + body)
            line.recv(100)
            assert settled(lambda: engine.streams and engine.streams[0].cancelled.is_set(), 30)
        assert settled(lambda: not live.house.runs.now)
        assert live.house.limits._running["local"] == 0


def test_a_body_that_comes_too_slowly_is_not_waited_for(release, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "READ_SECONDS", 0.3)
    with told(release, tmp_path, endless) as live:
        line = socket.create_connection(("127.0.0.1", live.server.port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        line.sendall(head + b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
        line.settimeout(10)
        assert line.recv(1000).startswith(b"HTTP/1.1 408")
        line.close()


def test_a_server_that_loads_says_so(release, tmp_path):
    go = threading.Event()

    def load():
        go.wait(30)
        return load_engine(release)

    with serving(plan_of(release, tmp_path), load, wait=False) as live:
        health = live.get("/health")
        assert health.status_code == 503
        assert health.json() == {"status": "not ready", "why": "the model is being loaded"}
        answer = live.post(json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in answer.headers
        assert "moiety_ready 0.0" in live.get("/metrics").text
        assert live.get("/v1/models").status_code == 200
        go.set()
        assert settled(lambda: live.get("/health").status_code == 200, 60)
        assert live.post(json=BODY).status_code == 200


def test_a_server_that_is_stopped_while_it_loads_is_never_ready(release, tmp_path):
    go = threading.Event()

    def load():
        go.wait(30)
        return ToldEngine(SLOTS, endless)

    with serving(plan_of(release, tmp_path), load, wait=False) as live:
        assert live.get("/health").status_code == 503
        live.server.stop()
        assert settled(lambda: not live.server._listeners[0].servers[0].is_serving())
        go.set()
    assert live.said == []


def test_an_engine_that_has_died_is_a_503_and_no_longer_ready(release, tmp_path):
    with serving(plan_of(release, tmp_path), lambda: load_engine(release)) as live:
        live.house.engine.close()
        answer = live.post(json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert live.get("/health").json()["why"] == "the engine is closed"


def test_usage_that_cannot_be_written_is_not_told_as_done(release, tmp_path, monkeypatch):
    def three(job):
        yield from steps(job, [40, 41, 42])
        yield Ending("length")

    with told(release, tmp_path, three) as live:
        with monkeypatch.context() as patch:
            patch.setattr(live.house.books, "_write", lambda _rows: "the disk is full")
            answer = live.post(json=BODY)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                503,
                "usage_not_written",
            )
            health = live.get("/health")
            assert (health.status_code, "the disk is full" in health.text) == (503, True)
        assert settled(lambda: live.get("/health").status_code == 200)
        assert live.post(json=BODY).status_code == 200


def test_numbers_that_json_has_not(release, tmp_path):
    def odd(job):
        weights = (0.25,) * len(job.slots)
        yield Step(40, float("-inf"), ((41, float("nan")),), weights)
        yield Ending("length")

    with told(release, tmp_path, odd) as live:
        told_ = live.post(json=BODY | {"logprobs": 1}).json()["choices"][0]["logprobs"]
        assert told_["token_logprobs"] == [-9999.0]
        assert set(told_["top_logprobs"][0].values()) == {-9999.0}


def test_a_server_that_stops_lets_requests_end_and_then_tells_them(release, tmp_path, monkeypatch):
    monkeypatch.setattr("moiety.serve.server.GRACE_SECONDS", 2)
    with told(release, tmp_path, endless, wait=0.05) as live:
        found = []
        ask = BODY | {"stream": True, "max_tokens": 120}
        thread = threading.Thread(target=lambda: found.append(live.post(json=ask)))
        thread.start()
        assert settled(lambda: live.house.runs.now)
        live.server.stop()
        thread.join(20)
    *_, last = events_of(found[0])
    assert last["error"]["code"] == "stopping"

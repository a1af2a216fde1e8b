"""A model that fails at every text says so, is tried again, and a dead engine says that it is."""

from __future__ import annotations

import time

import pytest
from tests.serve.conftest import NAME, serving, settled

from moiety.serve import ServePlan, load_engine
from moiety.serve import engine as engines
from moiety.serve.admission import DIED, FAILING

BODY = {"model": NAME, "prompt": "ba", "max_tokens": 4, "temperature": 0}


def fault(*_args):
    raise RuntimeError("a fault put in")


@pytest.fixture
def live(release, tmp_path, monkeypatch):
    """A server of its own, whose model is tried again soon."""
    monkeypatch.setattr(engines, "TRY_SECONDS", 0.3)
    usage = f"sqlite:///{tmp_path}/usage.sqlite"
    plan = ServePlan(release, port=0, admin_port=0, name=NAME, usage=usage)
    with serving(plan, lambda: load_engine(release)) as found:
        yield found


def code(answer):
    return answer.status_code, answer.json().get("error", {}).get("code")


def health(live):
    answer = live.get("/health")
    return answer.status_code, answer.json().get("why")


@pytest.mark.parametrize(
    "place", ["_decoder.run", "_decoder.logits", "_keep", "_prefixes.known", "board.decodes"]
)
def test_when_every_step_fails_health_says_so_until_one_succeeds(live, monkeypatch, place):
    owner, name = live.house.engine._stepper, place
    if "." in place:
        part, name = place.split(".")
        owner = getattr(owner, part)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fault)
        for _ in range(engines.FAILURES):
            assert code(live.post(json=BODY)) == (500, "engine_failed")
        assert settled(lambda: health(live) == (503, FAILING))
        assert code(live.post(json=BODY)) == (503, "not_ready")
        time.sleep(2 * engines.TRY_SECONDS)
        assert health(live) == (503, FAILING), "it was tried, and fails"
    assert settled(lambda: health(live)[0] == 200)
    assert live.post(json=BODY).status_code == 200


def test_weights_that_are_no_numbers_are_a_failure_too(live):
    norm = live.house.engine._stepper._decoder._norm
    norm._weight = norm._weight * float("nan")
    for _ in range(engines.FAILURES):
        assert code(live.post(json=BODY)) == (500, "engine_failed")
    assert settled(lambda: health(live) == (503, FAILING))


def test_a_text_that_fails_now_and_then_stops_nobody(live, monkeypatch):
    stepper = live.house.engine._stepper
    for _ in range(2 * engines.FAILURES):
        with monkeypatch.context() as patch:
            patch.setattr(stepper._decoder, "run", fault)
            assert code(live.post(json=BODY)) == (500, "engine_failed")
        assert health(live)[0] == 200
        assert live.post(json=BODY).status_code == 200


def test_a_request_that_cannot_be_begun_counts(live, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(live.house.engine._stepper, "enter", fault)
        for _ in range(engines.FAILURES):
            assert code(live.post(json=BODY)) == (500, "engine_failed")
        assert health(live) == (503, FAILING)
    assert settled(lambda: health(live)[0] == 200)


def test_an_engine_whose_thread_has_died_says_that_and_still_lets_owners_leave(live, monkeypatch):
    monkeypatch.setattr(live.house.engine._stepper.board, "feeds", fault)
    told = live.post(json=BODY)
    assert code(told) == (500, "engine_failed")
    assert told.json()["error"]["message"] == DIED.words
    assert health(live) == (503, DIED.words)
    assert code(live.post(json=BODY)) == (503, "not_ready")
    live.house.engine.remove([1])
    assert live.house.engine._stepper._decoder._blocks[0].experts[1] is None

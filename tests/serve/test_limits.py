"""What a key may ask of a server in a minute and at once: what counts, and when it is looked at."""

from __future__ import annotations

import threading

import pytest
from tests.serve.conftest import policed, settled

BODY = {"model": "release", "prompt": "w1 w2", "max_tokens": 3, "temperature": 0}
MANY = {"experts": "all", "requests_per_minute": 10**6, "tokens_per_minute": 10**9}
KEYS = {
    "bad": MANY | {"requests_per_minute": 3},
    "looks": MANY | {"requests_per_minute": 2},
    "one": MANY | {"concurrent": 1},
    "poor": MANY | {"tokens_per_minute": 60},
    "app": MANY | {"concurrent": 100},
}


@pytest.fixture(scope="module")
def house(release_with_terms, tmp_path_factory):
    with policed(release_with_terms, tmp_path_factory.mktemp("limits"), KEYS) as found:
        yield found


@pytest.fixture
def tokenizing(house, monkeypatch):
    """Who comes to a text's tokens waits there until the event is set; returns it, and who came."""
    texts, may_go, came = house[0].house.texts, threading.Event(), []
    encode = texts.encode

    def slow(text, *rest):
        came.append(text)
        assert may_go.wait(60)
        return encode(text, *rest)

    monkeypatch.setattr(texts, "encode", slow)
    yield may_go, came
    may_go.set()


def test_what_is_refused_is_counted(house):
    live, secrets, *_ = house
    bodies = [BODY | {"zzz": 1}, BODY | {"model": "eve"}, BODY | {"prompt": "w1 " * 200}, BODY]
    codes = [live.post(key=secrets["bad"], json=body).status_code for body in bodies]
    assert codes == [400, 404, 400, 429]
    for _ in range(5):
        assert live.post(key="wrong", json=BODY).status_code == 401
    assert live.house.limits._running["bad"] == 0


def test_looks_are_limited_too_and_by_themselves(house):
    live, secrets, *_ = house
    key = secrets["looks"]
    paths = ("/v1/models", "/v1/models/release", "/v1/roster", "/v1/usage")
    codes = [live.get(path, key).status_code for path in paths]
    assert codes == [200, 200, 429, 429]
    assert 1 <= int(live.get("/v1/roster", key).headers["retry-after"]) <= 30
    assert [live.post(key=key, json=BODY).status_code for _ in range(3)] == [200, 200, 429]
    assert live.get("/v1/models", secrets["app"]).status_code == 200, "others are not slowed"


def test_a_request_has_its_place_before_its_text_is_looked_at(house, tokenizing):
    live, secrets, *_ = house
    may_go, came = tokenizing
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(live.post(key=secrets["one"], json=BODY))
    )
    first.start()
    assert settled(lambda: came)
    refused = live.post(key=secrets["one"], json=BODY)
    assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
    assert len(came) == 1, "nothing of it was read"
    may_go.set()
    first.join()
    assert [answer.status_code for answer in answers] == [200]
    assert settled(lambda: live.house.limits._running["one"] == 0)


def test_a_prompt_counts_for_each_of_its_choices(house):
    live, secrets, *_ = house
    body = BODY | {"max_tokens": 1, "prompt": " ".join(["w1"] * 20)}
    key, prompt = secrets["poor"], 21
    too_many = live.post(key=key, json=body | {"n": 3})
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (400, "too_many_tokens")
    first = live.post(key=key, json=body | {"n": 2})
    assert first.json()["usage"]["prompt_tokens"] == prompt, "billed once"
    # Of 60 tokens 2 * 21 + 2 were used; one more prompt does not fit.
    assert live.post(key=key, json=body).status_code == 429


def test_a_prompt_is_scored_once(house):
    live, secrets, *_ = house
    scored = BODY | {"max_tokens": 0}
    assert live.post(key=secrets["app"], json=scored).status_code == 200
    refused = live.post(key=secrets["app"], json=scored | {"n": 2})
    assert refused.status_code == 400
    assert "max_tokens" in refused.json()["error"]["message"]

"""Large bodies of the smallest key: the server goes on answering, and its memory stays small."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.conftest import Live, policed

from moiety.serve import reading
from moiety.serve.door import BODY_MAX_BYTES
from moiety.serve.requests import ChatRequest, CompletionRequest

SIZE = BODY_MAX_BYTES - 200
MOST = reading.VALUES_MAX - 10
MOST_SECONDS = 5.0
"""A tenth of a second where nothing else runs. Before there was a bound, a body took a minute."""
MOST_MIB = 150
KEYS = {"app": {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}}


@pytest.fixture(scope="module")
def server(release_with_terms, tmp_path_factory):
    place = tmp_path_factory.mktemp("large")
    with policed(release_with_terms, place, KEYS) as (live, secrets, *_):
        yield live, secrets["app"]


@dataclass
class Seen:
    """The longest that ``/health`` took meanwhile, and by how much memory grew at most."""

    seconds: float = 0.0
    mib: float = 0.0


@contextmanager
def watching(url: str) -> Iterator[Seen]:
    """Asks for health all the time."""
    seen, asking, over = Seen(), threading.Event(), threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=120) as http:
            while not over.wait(0.005):
                begun = time.monotonic()
                http.get(url + "/health")
                seen.seconds = max(seen.seconds, time.monotonic() - begun)
                asking.set()

    Path("/proc/self/clear_refs").write_text("5")
    before, thread = peak_mib(), threading.Thread(target=ask)
    thread.start()
    assert asking.wait(60)
    try:
        yield seen
    finally:
        over.set()
        thread.join()
        seen.mib = peak_mib() - before


def peak_mib() -> float:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) / 1024


def posted(live: Live, path: str, key: str, data: bytes) -> httpx.Response:
    """The answer to a body that kept nobody waiting and took little memory.

    The best of three times counts, because a busy machine keeps waiting too.
    """
    headers = {"Content-Type": "application/json"}
    for _ in range(3):
        with watching(live.url) as seen:
            answer = live.post(path, key, content=data, headers=headers)
        if seen.seconds < MOST_SECONDS and seen.mib < MOST_MIB:
            return answer
    raise AssertionError(seen)


def many(item: str, size: int = SIZE) -> str:
    """A list as long as a body may be."""
    return f"[{','.join([item] * (size // (len(item) + 1)))}]"


def some(item: str) -> str:
    """A list of as many values as a body may hold."""
    return many(item, MOST // (1 + item.count("[") + item.count("{")) * (len(item) + 1))


def chat(content: str) -> str:
    return '"messages":[{"role":"user","content":' + content + "}]"


def names(size: int = SIZE) -> str:
    return "{" + ",".join(f'"{number}":0' for number in range(size // 12)) + "}"


PROMPTS = ("1", "-1", "{}", "[]", "[1]", '""', '"aaaaa"', '{"a":0}', "1e5")
BODIES = {
    **{item: ("/v1/completions", f'"prompt":{many(item)}') for item in PROMPTS},
    "stop": ("/v1/completions", f'"prompt":"x","stop":{many("0")}'),
    "names": ("/v1/completions", f'"prompt":"x",{names()[1:-1]}'),
    "deep": ("/v1/completions", f'"prompt":"x","moiety":{names()}'),
    "parts": ("/v1/chat/completions", chat(many("0"))),
    "messages": ("/v1/chat/completions", f'"messages":{many("{}")}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_many_values_harms_nobody(server, name):
    live, key = server
    path, fields = BODIES[name]
    data = ('{"model":"release",' + fields + "}").encode()
    answer = posted(live, path, key, data)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the body holds more than 262,144 values"


ALLOWED = {
    **{item: ("/v1/completions", f'"prompt":{some(item)}') for item in PROMPTS},
    "escapes": ("/v1/completions", '"prompt":"' + "\\u00e9" * (SIZE // 6) + '"'),
    "text": ("/v1/completions", '"prompt":"' + "[a, b] " * (SIZE // 7) + '"'),
    "unknown": ("/v1/completions", f'"prompt":"x",{names(MOST * 12)[1:-1]}'),
    "unknown below": ("/v1/completions", f'"prompt":"x","moiety":{names(MOST * 12)}'),
    "messages": ("/v1/chat/completions", f'"messages":{some("{}")}'),
    "parts": ("/v1/chat/completions", chat(some("{}"))),
    "experts": ("/v1/completions", '"prompt":"x","moiety":{"experts":' + some("0") + "}"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_as_many_values_as_may_be_harm_nobody(server, name):
    live, key = server
    path, fields = ALLOWED[name]
    data = ('{"model":"release",' + fields + "}").encode()
    assert len(data) <= BODY_MAX_BYTES
    answer = posted(live, path, key, data)
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < 1000


JSON = st.recursive(
    st.none() | st.integers(0, 99) | st.text(alphabet='a,[{"\\:', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='a,[{"\\', max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)


def count(value) -> int:
    """Values in a value, itself among them, counted one by one."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return 1
    return 1 + sum(count(one) for one in value)


@given(JSON)
def test_values_are_counted_before_they_are_made(value):
    data = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "VALUES_MAX", count(value) - 2)
        assert reading._holds_too_many(data), "never less than there are"
        patched.setattr(reading, "VALUES_MAX", 2 * count(value))
        assert not reading._holds_too_many(data), "signs in texts do not count"


def test_of_each_list_one_wrong_item_is_told():
    bad = {"prompt": [-1] * 1000, "stop": [0] * 1000, "moiety": {"experts": [0] * 1000}}
    unknown = {f"x{number}": number for number in range(1000)}
    for kind, body in (
        (CompletionRequest, {"model": "m", **bad, **unknown}),
        (ChatRequest, {"model": "m", "messages": [{**unknown}] * 1000, **unknown}),
    ):
        with pytest.raises(ValueError, match="validation error") as caught:
            kind.model_validate(body)
        assert caught.value.error_count() < 10

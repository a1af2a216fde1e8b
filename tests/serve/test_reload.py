"""A policy that changes while many ask: nobody is served what it may not have at that moment."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from tests.serve.conftest import NAME, TERMS, Live, policy_of, serving, settled, told_server
from tests.serve.engines import Script, short, steps

from moiety.serve import ServePlan, load_engine
from moiety.serve.jobs import Ending, Job, Step
from moiety.serve.policy import new_key

ASK = {"prompt": "ba ba", "max_tokens": 40, "temperature": 0}
RIGHTS = {"purposes": ["any"], "requests_per_minute": 10**6, "tokens_per_minute": 10**9}
WITH, WITHOUT = ["amy", "bob"], ["bob"]
FLIPS = 6


@dataclass
class Asking(threading.Thread):
    """Asks again and again; of each request: when it began and ended, and what it got."""

    url: str
    secret: str
    model: str
    stopped: threading.Event
    told: list[tuple[float, float, int, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.secret}"}
        with httpx.Client(timeout=60, headers=headers) as http:
            while not self.stopped.is_set():
                begun = time.monotonic()
                answer = http.post(self.url + "/v1/completions", json=ASK | {"model": self.model})
                self.told.append((begun, time.monotonic(), answer.status_code, answer.json()))


def test_nobody_is_served_what_a_new_policy_forbids(release, tmp_path):
    text, secrets = policy_of(app={"experts": WITH, **RIGHTS}, other={"experts": "all", **RIGHTS})
    policies = [text, text.replace(*(str(names).replace("'", '"') for names in (WITH, WITHOUT)))]
    assert policies[0] != policies[1]
    path, stop = tmp_path / "policy.toml", threading.Event()
    path.write_text(text, "utf-8")
    usage = f"sqlite:///{tmp_path}/u.sqlite"
    plan = ServePlan(release, policy=path, port=0, admin_port=0, name=NAME, usage=usage)
    forbidden = []
    with serving(plan, lambda: load_engine(release)) as live:
        pairs = [("app", f"{NAME}+amy"), ("app", NAME), ("app", f"{NAME}+bob"), ("other", NAME)]
        crowd = [Asking(live.url, secrets[key], model, stop) for key, model in pairs * 2]
        for one in crowd:
            one.start()
        assert settled(lambda: all(one.told for one in crowd), 60)
        for number in range(1, FLIPS + 1):
            time.sleep(0.5)
            path.write_text(policies[number % 2], "utf-8")
            before = time.monotonic()
            assert live.admin("POST", "/admin/reload", secrets["admin"]).status_code == 200
            if number % 2:
                begun = time.monotonic()
            else:
                forbidden.append((begun, before))
        stop.set()
        for one in crowd:
            one.join(60)
    for one, (key, model) in zip(crowd, pairs * 2, strict=True):
        codes = {code for _, _, code, _ in one.told}
        assert codes <= ({200, 403} if key == "app" and "bob" not in model else {200})
        assert 200 in codes
        for begun, ended, code, body in one.told:
            if code == 403:
                assert body["error"]["code"] in ("expert_not_allowed", "no_longer_allowed")
                assert "amy" in body["error"]["message"]
            if key == "app" and any(a < begun and ended < b for a, b in forbidden):
                assert code == (403 if model.endswith("amy") else 200)
                assert code == 403 or "amy" not in body["moiety"]["experts"]
            # One that began before ends within a second of the new policy, or had ended.
            late = [a for a, b in forbidden if begun < a and a + 1 < ended < b]
            assert not (late and code == 200 and "amy" in body["moiety"]["experts"])
    texts = {body["choices"][0]["text"] for one in crowd[3::4] for _, _, _, body in one.told}
    assert len(texts) == 1, "the other key's answers are the same all the while"


SHORT = {"model": "release", "prompt": "w1 w2", "max_tokens": 100}
APP = {"experts": ["amy", "bob"], "purposes": ["care"], "may_see_routing": True}


@dataclass
class Policed:
    """A server of a release with terms, and the policy that it was started with."""

    live: Live
    path: Any
    text: str
    secrets: dict[str, str]

    def reload(self, *changes: tuple[str, str]) -> None:
        """The first policy with these changes is in force from now on."""
        text = self.text
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.path.write_text(text, "utf-8")
        answer = self.live.admin("POST", "/admin/reload", self.secrets["admin"])
        assert answer.status_code == 200, answer.text

    def prepared(self) -> socket.socket:
        """A request that has come but for its last byte."""
        line = socket.create_connection(("127.0.0.1", self.live.server.port), timeout=30)
        body = json.dumps(SHORT | {"model": "release+amy"}).encode()
        key = self.secrets["app"]
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        head += "Content-Type: application/json\r\nConnection: close\r\n"
        line.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        return line


def policed_by(folder: Any, place: Any, script: Script, wait: float, app: Any) -> Iterator[Policed]:
    text, secrets = policy_of(app=app)
    path = place / "policy.toml"
    path.write_text(text, "utf-8")
    names = ("anchor", *TERMS)
    with told_server(folder, place, script, wait, names=names, policy=path) as live:
        yield Policed(live, path, text, secrets)


@pytest.fixture
def quick(release_with_terms, tmp_path):
    """Answers at once."""
    yield from policed_by(release_with_terms, tmp_path, short, 0.0, APP)


def long(job: Job) -> Iterator[Step | Ending]:
    """A hundred tokens."""
    yield from steps(job, [5] * 100)
    yield Ending("length")


@pytest.fixture
def slow(release_with_terms, tmp_path):
    """Answers for five seconds."""
    yield from policed_by(release_with_terms, tmp_path, long, 0.05, APP)


def rest_of(line: socket.socket) -> tuple[int, Any]:
    """Sends the last byte; status and body of the answer."""
    line.sendall(b"}")
    with line, line.makefile("rb") as told:
        head, _, body = told.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_request_that_was_begun_before_a_new_policy_has_only_the_new_rights(quick):
    lines = [quick.prepared() for _ in range(6)]
    time.sleep(0.3)
    quick.reload()
    assert rest_of(lines.pop())[0] == 200, "what has not changed"
    quick.reload(('["amy", "bob"]', '["bob"]'))
    status, body = rest_of(lines.pop())
    assert (status, body["error"]["code"]) == (403, "expert_not_allowed")
    quick.reload(('id = "app"', 'id = "app"\nbound = ["amy"]'), ('experts = ["amy", "bob"]', ""))
    assert rest_of(lines.pop())[1]["moiety"]["experts"] == ["anchor", "amy"]
    quick.reload((quick.text[quick.text.index("[[keys]]") :], ""))
    status, body = rest_of(lines.pop())
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    quick.reload((hash_in(quick.text), new_key()[1]))
    assert rest_of(lines.pop())[0] == 401, "another key under the same name"
    quick.reload()
    assert rest_of(lines.pop())[0] == 200


def hash_in(text: str) -> str:
    """The hash of the only key that is not the admin's."""
    return text.rpartition('hash = "')[2].partition('"')[0]


def ends_with(policed: Policed, ask: dict[str, Any], *changes: tuple[str, str]) -> dict[str, Any]:
    """The error that a running stream ends with when the policy is changed."""
    headers = {"Authorization": f"Bearer {policed.secrets['app']}"}
    url, body = policed.live.url + "/v1/completions", SHORT | ask | {"stream": True}
    with policed.live.http.stream("POST", url, json=body, headers=headers) as answer:
        assert settled(lambda: policed.live.house.runs.now)
        begun = time.monotonic()
        policed.reload(*changes)
        *_, last, done, _ = answer.read().decode().split("\n\n")
    assert time.monotonic() - begun < 2
    assert done == "data: [DONE]"
    policed.reload()
    return json.loads(last.removeprefix("data: "))["error"]


def test_a_key_that_was_changed_for_another_keeps_nothing_running(slow):
    told = ends_with(slow, {}, (hash_in(slow.text), new_key()[1]))
    assert told["code"] == "invalid_api_key"


CHANGES = [
    ({}, ('["amy", "bob"]', '["bob"]'), "amy is no longer among this key's experts"),
    ({"moiety": {"purpose": "care"}}, ('["care"]', "[]"), "may no longer ask for care"),
    ({"moiety": {"routing": True}}, ("routing = true", "routing = false"), "see the routing"),
    ({}, ('experts = ["amy", "bob"]', 'bound = ["amy", "bob", "cat"]'), "bound to another set"),
]


@pytest.mark.parametrize(("ask", "change", "words"), CHANGES)
def test_what_a_new_policy_ends_says_so_and_blames_no_owner(slow, ask, change, words):
    told = ends_with(slow, ask, change)
    assert (told["code"], told["type"]) == ("no_longer_allowed", "permission_error")
    assert words in told["message"]


def test_a_policy_may_be_a_link_as_mounted_secrets_are(quick, tmp_path):
    for version, text in (("1", quick.text), ("2", quick.text.replace('["amy", "bob"]', "[]"))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "policy.toml").write_text(text, "utf-8")
    (tmp_path / "now").symlink_to("1")
    quick.path.unlink()
    quick.path.symlink_to("now/policy.toml")
    for version, experts in (("1", ["anchor", "amy", "bob"]), ("2", ["anchor"])):
        (tmp_path / "next").symlink_to(version)
        (tmp_path / "next").rename(tmp_path / "now")
        live, key = quick.live, quick.secrets["app"]
        assert live.admin("POST", "/admin/reload", quick.secrets["admin"]).status_code == 200
        assert live.post(json=SHORT, key=key).json()["moiety"]["experts"] == experts
    (tmp_path / "2" / "policy.toml").unlink()
    told = live.admin("POST", "/admin/reload", quick.secrets["admin"])
    assert (told.status_code, "the old policy stays" in told.text) == (400, True)

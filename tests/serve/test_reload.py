"""A policy that changes while many ask: nobody is served what it may not have at that moment."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.serve.conftest import NAME, policy_of, serving

from moiety.serve import ServePlan, load_engine

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
                assert body["error"]["code"] in ("expert_not_allowed", "expert_withdrawn")
                assert "amy" in body["error"]["message"]
            if key == "app" and any(a < begun and ended < b for a, b in forbidden):
                assert code == (403 if model.endswith("amy") else 200)
                assert code == 403 or "amy" not in body["moiety"]["experts"]
            # One that began before ends within a second of the new policy, or had ended.
            late = [a for a, b in forbidden if begun < a and a + 1 < ended < b]
            assert not (late and code == 200 and "amy" in body["moiety"]["experts"])
    texts = {body["choices"][0]["text"] for one in crowd[3::4] for _, _, _, body in one.told}
    assert len(texts) == 1, "the other key's answers are the same all the while"

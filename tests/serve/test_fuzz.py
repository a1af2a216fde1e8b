"""The server against its own description: whatever it can spell is answered, and as it says.

Each operation gets requests that conform to the description, and ones that break it in one place.
Of every answer: no failure of the server, a status, a kind and a form that are described, what
breaks the description is refused, and nobody is let in without a key where one is asked for.

``make fuzz`` runs it for minutes, with other cases each time; here the cases are always the same.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.serve.conftest import NAME, Live, policy_of, serving

from moiety.serve import ServePlan, load_engine
from moiety.serve.texts import Texts

CASES = int(os.environ.get("FUZZ_CASES", "0"))
USUAL_CASES = 60
UNLIKE_EACH_OTHER = 10
"""Of an operation without a body so many times fewer are tried: they hardly differ."""

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
RIGHTS = {
    "experts": "all",
    "purposes": ["any"],
    "may_see_routing": True,
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "concurrent": 100,
}
TEMPLATE = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}"
# What the model reads at most, and which fields exclude each other, no schema of ours can say.
UNSAID = [positive_data_acceptance]


@dataclass
class Fuzzed:
    """A server with a policy, and how often which operation answered what."""

    live: Live
    secrets: dict[str, str]
    told: Counter[tuple[str, int]] = field(default_factory=Counter)


@pytest.fixture(scope="module")
def fuzzed(release, tmp_path_factory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(release, folder / "chatting")
    (folder / "chatting" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    text, secrets = policy_of(app=RIGHTS)
    (folder / "policy.toml").write_text(text, "utf-8")
    usage = f"sqlite:///{folder}/usage.sqlite"
    ports = {"port": 0, "admin_port": 0}
    plan = ServePlan(release, policy=folder / "policy.toml", name=NAME, usage=usage, **ports)
    with serving(plan, lambda: load_engine(release)) as live:
        live.house.texts = Texts(folder / "chatting")
        found = Fuzzed(live, secrets)
        yield found
        print("\n".join(f"{count:6} {what} {code}" for (what, code), count in found.told.items()))
        print(f"{found.told.total():6} requests")


def try_all(fuzzed: Fuzzed, base_url: str, usual_key: str) -> None:
    """Every operation of one port's description, in both ways."""
    admin = {"Authorization": f"Bearer {fuzzed.secrets['admin']}"}
    usual = {"Authorization": f"Bearer {fuzzed.secrets[usual_key]}"}
    schema = schemathesis.openapi.from_url(f"{base_url}/openapi.json", headers=admin)
    for found in schema.get_all_operations():
        operation = found.ok()
        headers = admin if operation.path == "/metrics" else usual
        open_to_all = operation.definition.raw.get("security") == []
        for mode in MODES[:1] if open_to_all else MODES:
            try_one(fuzzed, operation, mode, base_url, headers)


def try_one(fuzzed: Fuzzed, operation: Any, mode: Any, base_url: str, headers: Any) -> None:
    count = CASES or USUAL_CASES

    @settings(
        max_examples=count if operation.body else count // UNLIKE_EACH_OTHER,
        derandomize=not CASES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), some.booleans())
    def run(case: Any, known: bool) -> None:
        assume(can_be_sent(case))
        if known and mode is GenerationMode.POSITIVE:
            make_possible(case)
        answer = case.call(base_url=base_url, headers=headers)
        fuzzed.told[case.operation.label, answer.status_code] += 1
        case.validate_response(answer, headers=headers, excluded_checks=UNSAID)

    run()


def can_be_sent(case: Any) -> bool:
    """Whether an address spells all of a case: of a field with nothing in it, it holds no trace."""
    return all(value not in ([], {}, None) for value in (case.query or {}).values())


def make_possible(case: Any) -> None:
    """What no schema says: the model and experts that are there, no contradictions, and not much.

    So more of the cases come further than to the first refusal, and many fit into a minute.
    """
    if "model" in case.path_parameters:
        case.path_parameters["model"] = NAME
    body = case.body
    if not isinstance(body, dict) or "model" not in body:
        return
    body["model"] = NAME
    for name, most in (("n", 3), ("max_tokens", 4), ("max_completion_tokens", 4)):
        if body.get(name) is not None:
            body[name] = min(int(body[name]), most)
    if body.get("max_completion_tokens") is not None:
        body.pop("max_tokens", None)
    if body.get("stream_options") is not None:
        body["stream"] = True
    if body.get("top_logprobs") is not None:
        body["logprobs"] = True
    if body.get("moiety"):
        body["moiety"] = {"experts": ["amy"], "routing": True}


def test_the_public_port_is_as_it_says(fuzzed):
    try_all(fuzzed, fuzzed.live.url, "app")
    assert ("POST /v1/completions", 200) in fuzzed.told
    assert ("POST /v1/chat/completions", 200) in fuzzed.told
    assert fuzzed.live.get("/health").status_code == 200


def test_the_admin_port_is_as_it_says(fuzzed):
    try_all(fuzzed, fuzzed.live.admin_url, "admin")
    assert ("GET /admin/roster", 200) in fuzzed.told
    assert fuzzed.live.get("/health").status_code == 200

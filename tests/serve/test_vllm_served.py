"""The whole server before vLLM: the same client, the same answers, the same withdrawal."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.serve import vllms
from tests.serve.asking import OWNERS
from tests.serve.conftest import NAME, serving, settled
from tests.serve.test_withdrawal import Asking, order_of

from moiety.bundle import signing
from moiety.merge import open_release
from moiety.serve import ServePlan, load_engine, load_vllm

pytestmark = [vllms.needs_vllm, pytest.mark.filterwarnings("default")]

ASK = {"prompt": "ba ba deke", "max_tokens": 40, "temperature": 0}
MODELS = ["mixture", "mixture+amy", "mixture-amy", "mixture-bob"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return vllms.make_world(tmp_path_factory.mktemp("served"))


@pytest.fixture
def folder(world, tmp_path):
    return shutil.copytree(world.release(*OWNERS), tmp_path / "release")


def sizes_in(tmp_path: Path) -> Path:
    path = tmp_path / "engine.toml"
    path.write_text("enforce_eager = true\nkv_cache_gib = 0.25\n")
    return path


def asked(live) -> list[dict]:
    """Answers of every kind, without what differs between any two."""
    client, found = live.client(), []
    for model in MODELS:
        whole = client.completions.create(model=model, **ASK, logprobs=2, echo=True)
        parts = client.completions.create(model=model, **ASK, stream=True)
        streamed = "".join(part.choices[0].text for part in parts if part.choices)
        found.append(
            {
                "text": whole.choices[0].text,
                "streamed": streamed,
                "tokens": whole.choices[0].logprobs.tokens,
                "experts": whole.model_extra["moiety"]["experts"],
                "shares": whole.model_extra["moiety"]["shares"],
                "logprobs": whole.choices[0].logprobs.token_logprobs[1:],
                "usage": (whole.usage.prompt_tokens, whole.usage.completion_tokens),
            }
        )
    return found


def assert_same(theirs: list[dict], ours: list[dict]) -> None:
    for one, other in zip(theirs, ours, strict=True):
        for name, value in other.items():
            close = pytest.approx(value, abs=1e-4) if name in ("shares", "logprobs") else value
            assert one[name] == close, name


def test_the_same_answers_a_withdrawal_under_load_and_a_death(world, folder, tmp_path):
    signing.new_key(tmp_path / "coordinator.pem")
    usage = f"sqlite:///{tmp_path}/usage.sqlite"
    plan = ServePlan(folder, port=0, name=NAME, usage=usage)
    with serving(plan, lambda: load_engine(folder)) as live:
        ours = asked(live)
    plan = ServePlan(
        folder,
        port=0,
        admin_port=0,
        name=NAME,
        usage=usage,
        receipt_key=tmp_path / "coordinator.pem",
    )

    def load():
        return load_vllm(folder, python=vllms.PYTHON, sizes=sizes_in(tmp_path))

    with serving(plan, load, wait=False) as live:
        assert settled(lambda: live.get("/health").status_code == 200, 180)
        assert_same(asked(live), ours)
        crowd = [Asking(live, model, stream) for model in MODELS[1:] for stream in (False, True)]
        for one in crowd:
            one.start()
        assert settled(lambda: all(one.texts for one in crowd), 60)
        order = order_of(world, "amy", tmp_path / "order.json")
        told = live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json()
        assert told["withdrawn"] == "amy"
        assert told["on_disk"] is True
        state = live.house.engine._state
        assert settled(lambda: state.current.slots == (0, 2, 3) and not state.retired, 180)
        counts = {one: len(one.texts) for one in crowd}
        rest = [one for one in crowd if one.model == "mixture-amy"]
        assert settled(lambda: all(len(one.texts) > counts[one] + 2 for one in rest), 60)
        for one in crowd:
            one.stopped.set()
            one.join()
        for one in crowd:
            if one.model == "mixture-amy":
                assert one.errors == []
                assert len(set(one.texts)) == 1, "the same text before, meanwhile and after"
            elif one.model == "mixture+amy":
                codes = {error["code"] for error in one.errors}
                assert codes <= {"expert_withdrawn", "expert_not_allowed"}
        assert open_release(folder).names == ["anchor", "bob", "cat"]
        os.kill(state.current.process._popen.pid, signal.SIGKILL)
        assert settled(lambda: live.get("/health").status_code == 503, 10)
        why = live.get("/health").json()["why"]
        assert "started anew" in why
        refused = live.post(json=ASK | {"model": "mixture"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "not_ready"
        assert settled(lambda: live.get("/health").status_code == 200, 180)
        again = live.post(json=ASK | {"model": "mixture-amy"}).json()
        assert again["choices"][0]["text"] == rest[0].texts[0]

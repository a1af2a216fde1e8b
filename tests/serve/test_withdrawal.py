"""An owner leaves a server that works: at once, under load, and nobody else notices."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time

import httpx
import pytest
from tests import tiny
from tests.serve.conftest import NAME, serving, settled

from moiety.bundle import orders, signing
from moiety.errors import MoietyError
from moiety.merge import open_release, withdrawal
from moiety.serve import ServePlan, load_engine

ASK = {"prompt": "ba ba deke", "max_tokens": 100, "temperature": 0}


def order_of(world, owner, out):
    orders.write_order(world.bundles[owner], world.folder / f"{owner}.pem", out)
    return out


@pytest.fixture
def folder(release, tmp_path):
    """A copy of the release that may change."""
    return shutil.copytree(release, tmp_path / "release")


def plan_of(folder, tmp_path, **how):
    usage = f"sqlite:///{tmp_path}/usage.sqlite"
    return ServePlan(folder, port=0, admin_port=0, name=NAME, usage=usage, **how)


def text_of(live, model):
    return live.post(json=ASK | {"model": model, "max_tokens": 40}).json()["choices"][0]["text"]


class Asking(threading.Thread):
    """Asks again and again, and keeps what it heard."""

    def __init__(self, live, model, stream):
        super().__init__(daemon=True)
        self.live, self.model, self.stream = live, model, stream
        self.texts, self.errors, self.experts = [], [], []
        self.stopped = threading.Event()

    def run(self):
        body = ASK | {"model": self.model, "max_tokens": 40, "stream": self.stream}
        with httpx.Client(timeout=60) as http:
            while not self.stopped.is_set():
                answer = http.post(self.live.url + "/v1/completions", json=body)
                self.hear(answer)

    def hear(self, answer):
        if not self.stream or answer.status_code != 200:
            chunks = [answer.json()]
        else:
            lines = [line[6:] for line in answer.text.split("\n\n") if line]
            assert lines[-1] == "[DONE]"
            chunks = [json.loads(line) for line in lines[:-1]]
        errors = [chunk["error"] for chunk in chunks if "error" in chunk]
        if errors:
            self.errors += errors
            return
        self.texts.append("".join(chunk["choices"][0]["text"] for chunk in chunks))
        self.experts.append(chunks[-1]["moiety"])


def test_under_load_nothing_else_is_lost(tiny_world, folder, tmp_path):
    signing.new_key(tmp_path / "coordinator.pem")
    plan = plan_of(folder, tmp_path, receipt_key=tmp_path / "coordinator.pem")
    before = open_release(folder).digest
    with serving(plan, lambda: load_engine(folder)) as live:
        models = ["mixture+amy", "mixture+bob", "mixture-amy", "mixture"]
        alone = {model: text_of(live, model) for model in models}
        crowd = [Asking(live, model, stream) for model in models for stream in (False, True)]
        for one in crowd:
            one.start()
        assert settled(lambda: all(one.texts for one in crowd), 60)
        order = order_of(tiny_world, "amy", tmp_path / "order.json")
        told = live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json()
        counts = {one: len(one.texts) for one in crowd}
        assert settled(
            lambda: all(one.errors or len(one.texts) > counts[one] + 2 for one in crowd), 60
        )
        for one in crowd:
            one.stopped.set()
            one.join()
        after = open_release(folder)
        assert told["withdrawn"] == "amy"
        assert told["on_disk"] is True
        assert told["roster"] == after.digest == live.house.served.digest
        assert after.names == ["anchor", "bob", "cat"]
        withdrawal.verify_receipt_against(told["receipt"], folder)
        for one in crowd:
            if one.model == "mixture+amy":
                assert {error["code"] for error in one.errors} <= {
                    "expert_withdrawn",
                    "expert_not_allowed",
                }
                assert all("amy" in error["message"] for error in one.errors)
            elif one.model != "mixture":
                assert one.errors == []
            if one.model != "mixture":
                assert set(one.texts) == {alone[one.model]}, (
                    "the same text as without the withdrawal"
                )
            for moiety in one.experts:
                assert ("amy" in moiety["experts"]) <= (moiety["roster"] == before)
        whole = live.post(json=ASK | {"model": "mixture", "max_tokens": 40}).json()
        assert whole["moiety"]["experts"] == ["anchor", "bob", "cat"]
        assert whole["moiety"]["roster"] == after.digest
        assert whole["choices"][0]["text"] == alone["mixture-amy"]


def test_running_requests_end_within_a_second_and_say_why(tiny_world, folder, tmp_path):
    order = order_of(tiny_world, "amy", tmp_path / "order.json")
    with serving(plan_of(folder, tmp_path), lambda: load_engine(folder)) as live:
        slow_down(live.house.engine)
        endings = {}

        def ask(name, body):
            answer = httpx.post(live.url + "/v1/completions", json=ASK | body, timeout=60)
            endings[name] = (time.monotonic(), answer)

        asks = {
            "stream": {"model": "mixture+amy", "stream": True},
            "whole": {"model": "mixture"},
            "other": {"model": "mixture-amy"},
        }
        threads = [threading.Thread(target=ask, args=item) for item in asks.items()]
        for thread in threads:
            thread.start()
        assert settled(lambda: len(live.house.runs.now) == 3)
        begun = time.monotonic()
        told = live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json()
        for thread in threads:
            thread.join()
        assert endings["stream"][0] - begun < 1
        assert endings["whole"][0] - begun < 1
        text = endings["stream"][1].text
        assert '"error"' in text.split("\n\n")[-3]
        assert "amy has been withdrawn" in text
        assert text.endswith("data: [DONE]\n\n")
        whole = endings["whole"][1]
        assert (whole.status_code, whole.json()["error"]["code"]) == (403, "expert_withdrawn")
        assert endings["other"][1].status_code == 200
        assert told["on_disk"] is False
        assert "restart would serve it again" in told["note"]
        assert open_release(folder).digest != told["roster"], "the folder is as it was"


def slow_down(engine):
    step = engine._stepper.step

    def slow():
        time.sleep(0.03)
        return step()

    engine._stepper.step = slow


def test_in_memory_alone_the_digest_changes_at_once(tiny_world, folder, tmp_path):
    order = order_of(tiny_world, "bob", tmp_path / "order.json")
    with serving(plan_of(folder, tmp_path), lambda: load_engine(folder)) as live:
        before = live.house.served.digest
        once = live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json()
        assert before != once["roster"]
        assert live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json() == once
        roster = live.admin("GET", "/admin/roster").json()
        states = {expert["name"]: expert["state"] for expert in roster["experts"]}
        assert states == {"anchor": "served", "amy": "served", "bob": "withdrawn", "cat": "served"}
        told = live.post(json=ASK | {"model": "mixture+bob"})
        assert told.status_code == 403
        assert "bob has been withdrawn" in told.json()["error"]["message"]
        assert live.post(json=ASK | {"model": "mixture-bob"}).status_code == 200
        ids = [model["id"] for model in live.get("/v1/models").json()["data"]]
        assert ids == ["mixture", "mixture+amy", "mixture+cat", "mixture-amy", "mixture-cat"]


def test_withdrawals_do_not_wait_for_texts(tiny_world, folder, tmp_path, monkeypatch):
    signing.new_key(key := tmp_path / "coordinator.pem")
    of_amy, of_cat = (order_of(tiny_world, one, tmp_path / f"{one}.json") for one in ("amy", "cat"))
    with serving(plan_of(folder, tmp_path), lambda: load_engine(folder)) as live:
        texts, came, may_go, told = live.house.texts, threading.Event(), threading.Event(), []
        encode = texts.encode

        def slow(*text):
            came.set()
            assert may_go.wait(60)
            return encode(*text)

        def ask():
            told.append(live.post(json=ASK | {"model": NAME}).json()["moiety"]["experts"])

        monkeypatch.setattr(texts, "encode", slow)
        asking = [threading.Thread(target=ask) for _ in range(40)]
        for one in asking:
            one.start()
        assert came.wait(60)
        withdrawal.withdraw(folder, "cat", of_cat, in_place=True, key=key)
        assert settled(lambda: live.house.served.has_left("cat"), 5)
        done = live.admin("POST", "/admin/withdraw", content=of_amy.read_bytes(), timeout=5)
        assert done.status_code == 200
        may_go.set()
        for one in asking:
            one.join()
        assert told == [["anchor", "bob"]] * 40


def test_a_roster_that_changes_on_disk_is_followed(tiny_world, folder, tmp_path):
    signing.new_key(tmp_path / "coordinator.pem")
    order = order_of(tiny_world, "cat", tmp_path / "order.json")
    with serving(plan_of(folder, tmp_path), lambda: load_engine(folder)) as live:
        withdrawal.withdraw(folder, "cat", order, in_place=True, key=tmp_path / "coordinator.pem")
        digest = open_release(folder).digest
        assert settled(lambda: live.house.served.digest == digest)
        told = live.post(json=ASK | {"model": "mixture"}).json()["moiety"]
        assert (told["experts"], told["roster"]) == (["anchor", "amy", "bob"], digest)


def test_orders_that_are_none_change_nothing(tiny_world, folder, tmp_path):
    good = order_of(tiny_world, "amy", tmp_path / "order.json").read_bytes()
    stranger = tiny.makers.make_bundle(tmp_path, tiny_world.anchor, "amy", seed=9)
    orders.write_order(stranger, tmp_path / "amy.pem", tmp_path / "stranger.json")
    receipt = json.dumps({"format": "moiety.receipt/1"}).encode()
    bad = {
        b"": (400, "not_json", "the body is not JSON: .*send an owner's order.json"),
        good[:-2]: (400, "not_json", "the body is not JSON"),
        b"\xff" * 100: (400, "not_json", "the body is not JSON"),
        b"[" * 9999: (400, "not_json", "the body is not JSON"),
        b"{}": (403, "order_refused", "no order that 'moiety order withdraw' wrote: .*missing"),
        receipt: (403, "order_refused", "no order that 'moiety order withdraw' wrote"),
        good.replace(b"payload", b"paylode"): (403, "order_refused", "paylode: no such field"),
        good + b" ": (403, "order_refused", "not in canonical form"),
    }
    stranger = (tmp_path / "stranger.json").read_bytes()
    bad[stranger] = (403, "order_refused", "the order is for another bundle of amy.*this release")
    with serving(plan_of(folder, tmp_path), lambda: load_engine(folder)) as live:
        before = live.house.served.digest
        for data, (status, code, words) in bad.items():
            told = live.admin("POST", "/admin/withdraw", content=data)
            assert (told.status_code, told.json()["error"]["code"]) == (status, code)
            assert re.search(words, told.json()["error"]["message"])
        assert live.admin("POST", "/admin/withdraw", content=b"x" * 10**6).status_code == 413
        assert live.house.served.digest == before
        assert live.post(json=ASK | {"model": "mixture+amy"}).status_code == 200


def test_a_folder_that_cannot_follow_is_told_and_the_expert_is_out(
    tiny_world, folder, tmp_path, monkeypatch
):
    signing.new_key(tmp_path / "coordinator.pem")
    order = order_of(tiny_world, "amy", tmp_path / "order.json")
    plan = plan_of(folder, tmp_path, receipt_key=tmp_path / "coordinator.pem")

    def full(*_args, **_how):
        raise MoietyError("no space left")

    with serving(plan, lambda: load_engine(folder)) as live:
        with monkeypatch.context() as patch:
            patch.setattr(withdrawal, "withdraw", full)
            told = live.admin("POST", "/admin/withdraw", content=order.read_bytes())
        assert (told.status_code, told.json()["error"]["code"]) == (500, "folder_not_written")
        assert "no space left" in told.json()["error"]["message"]
        assert live.post(json=ASK | {"model": "mixture+amy"}).status_code == 403
        again = live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json()
        assert again["on_disk"] is True
        assert again["roster"] == open_release(folder).digest
        last = live.admin("POST", "/admin/withdraw", content=order.read_bytes()).json()
        assert "left the folder already" in last["note"]

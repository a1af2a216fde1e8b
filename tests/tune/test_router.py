"""A tuned release from end to end: better where it was tuned, and usable as any other."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from tests import tiny
from tests.merge.tunings import write_proxies
from tests.merge.worlds import assert_same_tree, tree
from tests.tune.worlds import config
from transformers import AutoModelForCausalLM, FlexOlmoForCausalLM

from moiety.data import Sources
from moiety.errors import ConfigError, IntegrityError, PolicyError, SignatureError, StateError
from moiety.evaluate import Question, attribute, evaluate
from moiety.merge import exporting, load_release, open_release, tuned, verify_release
from moiety.tune import RouterPlan, tune_router
from moiety.tune.router import tuning_config

STEPS = 12


@pytest.fixture(scope="module")
def plan(tune_world, tmp_path_factory):
    out = tmp_path_factory.mktemp("router") / "tuned"
    papers = [tune_world.proxies(owner) for owner in ("amy", "bob")]
    fast = config("optim.learning_rate=0.05")
    return RouterPlan(tune_world.release, tune_world.anchor, papers, out, fast, STEPS)


@pytest.fixture(scope="module")
def done(plan):
    return tune_router(plan, quiet=True)


def test_it_is_better_on_text_kept_aside_and_holds(plan, done):
    before, after = done.heldout
    assert after < before
    found = verify_release(plan.out)
    assert (found.digest, found.roster.strict) == (done.digest, False)
    assert found.roster.tuning.steps == STEPS
    assert sorted(found.roster.tuning.proxies) == ["amy", "bob"]
    assert done.flags == []
    assert not plan.out.with_name("tuned.tuning").exists()


def test_going_back_gives_the_release_that_was_tuned(plan, done, tmp_path):
    tuned.untune(plan.out, tmp_path / "back")
    assert_same_tree(plan.release, tmp_path / "back")
    with pytest.raises(StateError, match="never tuned"):
        tuned.untune(tmp_path / "back", tmp_path / "again")


def test_its_plain_checkpoint_routes_by_the_tuned_tables(plan, done, tmp_path):
    exporting.export_plain(plan.out, tmp_path / "plain")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    assert isinstance(stock, FlexOlmoForCausalLM)
    tokens = tiny.random_tokens(2, 20)
    tokens[:, 0] = 0  # a text begins with the separator
    ours = tiny.logits_of(load_release(plan.out), tokens)
    untuned = tiny.logits_of(load_release(plan.release), tokens)
    with torch.inference_mode():
        theirs = stock(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - untuned).abs().max() > 0.01


@pytest.mark.parametrize("name", ["anchor", "amy", "bob"])
def test_an_expert_alone_is_the_same_one(plan, done, tmp_path, name):
    exported = [
        exporting.export_dense(folder, name, tmp_path / folder.name)
        for folder in (plan.release, plan.out)
    ]
    one, other = map(tree, exported)
    assert {file for file in one if one[file] != other[file]} == {"README.md"}


def test_it_is_judged_divided_and_asked_like_any_other(plan, done, tune_world):
    text = str(tune_world.text("amy"))
    reports = [
        evaluate(Question(folder, {"amy": [text]}, max_tokens=500, window_tokens=32))
        for folder in (plan.release, plan.out)
    ]
    scores = [report.bits_per_byte for report in reports]
    assert scores[0]["anchor"] == scores[1]["anchor"]
    assert scores[0]["all"] != scores[1]["all"]
    shares = attribute(plan.out, Sources([text]), max_tokens=500, window_tokens=32)
    assert shares.owners == ("amy", "bob")
    said = load_release(plan.out).generate("ba ba", max_new_tokens=4, temperature=0.0)
    assert said == tiny.greedy_by_recomputation(load_release(plan.out), "ba ba", 4)


def test_stopped_and_resumed_is_the_same_release(plan, done, tmp_path, monkeypatch):
    from moiety.train.loop import Loop

    whole, calls = Loop._step, []

    def dying(self):
        calls.append(1)
        if len(calls) in (5, 9):
            self._save()
            raise KeyboardInterrupt
        return whole(self)

    again = replace(plan, out=tmp_path / "again")
    monkeypatch.setattr(Loop, "_step", dying)
    for attempt in range(2):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            tune_router(again, resume=attempt > 0, quiet=True)
        with pytest.raises(StateError, match="begun here"):
            tune_router(again, quiet=True)
    other = replace(again, proxies=again.proxies[:1])
    with pytest.raises(StateError, match="other proxies"):
        tune_router(other, resume=True, quiet=True)
    tune_router(again, resume=True, quiet=True)
    assert_same_tree(plan.out, again.out)


def test_what_is_not_signed_or_won_nothing_is_told(tune_world, plan, tmp_path):
    from moiety.bundle import orders

    paper = orders.verify_proxies(tune_world.proxies("amy")).proxies
    orders.write_proxies(paper, None, tmp_path / "amy.json")
    timid = config("optim.learning_rate=1e-12")
    unsigned = replace(
        plan, proxies=[tmp_path / "amy.json"], out=tmp_path / "out", config=timid, steps=2
    )
    done = tune_router(unsigned, quiet=True)
    assert "amy's proxies are not signed" in done.flags
    assert sum("nothing was won" in flag for flag in done.flags) == 1
    assert open_release(tmp_path / "out").roster.tuning.proxies["amy"].key is None
    tuned_bytes, own_bytes = (
        (folder / "evidence.safetensors").read_bytes()
        for folder in (tmp_path / "out", plan.release)
    )
    assert tuned_bytes == own_bytes


def refused(kind, match, plan):
    with pytest.raises(kind, match=match):
        tune_router(plan, quiet=True)
    assert not plan.out.exists()
    assert not plan.out.with_name(f"{plan.out.name}.tuning").exists()


def test_what_does_not_belong_together_is_refused(tune_world, plan, tmp_path, tiny_anchor):
    new = replace(plan, out=tmp_path / "new")
    refused(PolicyError, "not the anchor of this release", replace(new, anchor=tiny_anchor))
    unknown = write_proxies(tune_world.anchor, "amy", tmp_path / "u.json")
    assert unknown.proxies.documents
    refused(PolicyError, "not in the public sample", replace(new, proxies=[tmp_path / "u.json"]))
    strangers = write_proxies(tune_world.anchor, "zoe", tmp_path / "z.json")
    assert strangers.key is None
    refused(PolicyError, "no expert called 'zoe'", replace(new, proxies=[tmp_path / "z.json"]))
    write_proxies(tune_world.anchor, "amy", tmp_path / "b.json", tune_world.key("bob"))
    refused(SignatureError, "signed by", replace(new, proxies=[tmp_path / "b.json"]))
    refused(PolicyError, "no proxies", replace(new, proxies=[]))
    refused(ConfigError, "0 steps", replace(new, steps=0))
    refused(ConfigError, "public text and proxies", replace(new, config=config("batch.windows=1")))


def test_a_changed_sample_is_refused(tune_world, plan, tmp_path):
    anchor = shutil.copytree(tune_world.anchor, tmp_path / "anchor")
    sample = anchor / "public" / "sample.jsonl.gz"
    data = bytearray(sample.read_bytes())
    data[-1] ^= 1
    sample.write_bytes(data)
    refused(IntegrityError, "not the file", replace(plan, anchor=anchor, out=tmp_path / "new"))


def test_one_does_not_tune_twice_or_over_something(plan, done, tmp_path):
    refused(StateError, "tuned already", replace(plan, release=plan.out, out=tmp_path / "new"))
    with pytest.raises(StateError, match="exists already"):
        tune_router(plan, quiet=True)


def test_windows_longer_than_the_anchor_reaches_are_refused(plan, tmp_path):
    long = tuning_config(["data.window_tokens=512", "batch.windows=4"])
    refused(ConfigError, "positions", replace(plan, config=long, out=tmp_path / "new"))

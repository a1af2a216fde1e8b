"""An owner's dense model: what changes, what does not, and that it is made once."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from moiety.data import load_tokenizer
from moiety.errors import ConfigError, StateError
from moiety.model import load_dense
from moiety.train.baselines import continue_dense, read_trained
from moiety.train.judge import judge_backbone
from moiety.train.log import RunLog

LONGER = ("budget.tokens=6400", "optim.learning_rate=1e-2")


def train(village, out, *assignments, part="feed-forward", **how):
    config = tiny.settings(*assignments)
    heldout = village.heldout["amy"]
    return continue_dense(
        village.anchor,
        village.texts["amy"],
        heldout,
        out,
        part=part,
        config=config,
        quiet=True,
        **how,
    )


@pytest.fixture(scope="module")
def made(village, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    return {
        part: train(village, folder / part, *LONGER, part=part)
        for part in ("feed-forward", "whole")
    }


def test_the_blocks_alone_change_and_nothing_else_by_a_bit(village, made):
    before = load_file(village.anchor / "model.safetensors")
    after = load_file(made["feed-forward"].folder / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".mlp." in name}


def test_the_whole_changes_whole(village, made):
    before = load_file(village.anchor / "model.safetensors")
    after = load_file(made["whole"].folder / "model.safetensors")
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("part", ["feed-forward", "whole"])
def test_it_knows_its_text_better_than_the_anchor_and_has_its_tokenizer(village, bench, made, part):
    folder = made[part].folder
    anchor, model = (load_dense(path) for path in (village.anchor, folder))
    bits = [
        judge_backbone(each, bench.texts.own_heldout, 2000).bits_per_byte
        for each in (anchor, model)
    ]
    assert bits[1] < bits[0] - 0.5
    text = "ba ba deke"
    ids = [load_tokenizer(path)[0].encode(text).ids for path in (village.anchor, folder)]
    assert ids[0] == ids[1]


def test_its_paper_says_what_it_took(made):
    paper = read_trained(made["whole"].folder)
    assert paper.tokens_seen == made["whole"].tokens_seen == paper.steps * 4 * 32
    assert paper.kind == "dense"
    assert "/" not in json.dumps(paper.model_dump(exclude={"format"})), (
        "no path of the owner's machine"
    )


def interrupted_at(step, monkeypatch):
    plain = RunLog.step

    def stop(self, number, *more):
        plain(self, number, *more)
        if number == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunLog, "step", stop)


@pytest.mark.parametrize("part", ["feed-forward", "whole"])
def test_stopped_and_resumed_it_is_the_same(village, tmp_path, monkeypatch, part):
    train(village, tmp_path / "one", part=part)
    with monkeypatch.context() as patch:
        interrupted_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(village, tmp_path / "two", part=part)
    assert not (tmp_path / "two").exists()
    with pytest.raises(StateError, match="unfinished work"):
        train(village, tmp_path / "two", part=part)
    with pytest.raises(StateError, match="other text or settings"):
        train(village, tmp_path / "two", "seed=1", part=part, resume=True)
    train(village, tmp_path / "two", part=part, resume=True)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for name in names - {"trained.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), (
            name
        )
    assert not (tmp_path / "two.training").exists()


def test_what_is_finished_is_not_done_again(village, tmp_path, monkeypatch):
    first = train(village, tmp_path / "out")
    monkeypatch.setattr("moiety.train.dense.load_start", None)  # it cannot begin
    assert train(village, tmp_path / "out") == first
    # How it is computed is no other question.
    assert train(village, tmp_path / "out", "budget.save_seconds=7", "compute.device=cpu") == first
    for how in (("seed=1",), ("budget.tokens=999",)):
        with pytest.raises(StateError, match="other text or settings"):
            train(village, tmp_path / "out", *how)
    with pytest.raises(StateError, match="other text or settings"):
        train(village, tmp_path / "out", part="whole")
    other = SimpleNamespace(anchor=village.anchor, heldout=village.heldout)
    other.texts = {"amy": village.texts["bob"]}
    with pytest.raises(StateError, match="other text or settings"):
        train(other, tmp_path / "out")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (("budget.tokens=none",), "how many tokens"),
        (("data.window_tokens=512",), "positions"),
    ],
)
def test_a_budget_is_asked_for_and_windows_must_fit(village, tmp_path, how, error):
    with pytest.raises(ConfigError, match=error):
        train(village, tmp_path / "out", *how)
    assert not (tmp_path / "out").exists()


def test_something_else_in_its_place_is_left_alone(village, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("dear diary")
    with pytest.raises(StateError, match="exists already"):
        train(village, tmp_path / "out")
    assert (tmp_path / "out" / "diary.txt").read_text() == "dear diary"


def test_without_held_out_text_a_share_is_held_back(village, tmp_path):
    made = continue_dense(
        village.anchor,
        village.texts["amy"],
        None,
        tmp_path / "out",
        part="whole",
        config=tiny.settings(),
        quiet=True,
    )
    assert made.tokens_seen == 1536

"""An owner's run: it learns, it says how much, and it refuses what cannot be."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from torch.nn import functional

from moiety.bundle import pack, papers, signing
from moiety.data import PackedText, Sources
from moiety.errors import ConfigError, DataError, FormatError, StateError
from moiety.merge import load_release, merge
from moiety.model import load_dense
from moiety.train import ExpertPlan, expert, train_expert
from moiety.train.table import evidence_table

KINDS = ("own", "public")


@pytest.fixture
def text(tmp_path):
    return Sources([str(tiny.write_text(tmp_path / "own.jsonl", seed=1))])


@pytest.fixture
def plan(tiny_anchor, text, tmp_path):
    return ExpertPlan(tiny_anchor, text, "amy", tmp_path / "run", tiny.settings())


@pytest.fixture(scope="module", params=["none", "4"], ids=["full", "low-rank"])
def trained(request, tiny_anchor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    text = Sources([str(tiny.write_text(folder / "own.jsonl", seed=1))])
    config = tiny.settings(
        f"pair.rank={request.param}", "budget.tokens=7680", "optim.learning_rate=2e-2"
    )
    return train_expert(ExpertPlan(tiny_anchor, text, "amy", folder / "run", config), quiet=True)


def test_training_on_easy_text_gains_a_lot_on_text_it_never_saw(trained):
    bits = trained.paper.result.heldout
    assert bits.pair < bits.anchor - 0.5


def bits_by_hand(text, nats_of):
    """Bits per byte of aligned text, every document's tokens counted once, window by window."""
    nats, size = 0.0, int(text.document_bytes.sum())
    for number in range(text.num_windows):
        windows = text.windows(np.array([number]))
        tokens, documents = torch.from_numpy(windows.tokens), torch.from_numpy(windows.documents)
        same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
        nats += float(nats_of(tokens, documents)[same].double().sum())
    return nats / size / math.log(2)


def test_its_table_is_what_the_anchor_and_the_merged_expert_score(trained, tiny_anchor, tmp_path):
    signing.new_key(tmp_path / "amy.pem")
    pack(trained.folder, tmp_path / "amy.pem", tmp_path / "amy.expert")
    merge(tiny_anchor, [tmp_path / "amy.expert"], tmp_path / "release")
    mixture = load_release(tmp_path / "release")
    backbone = load_dense(tiny_anchor)

    def anchor_nats(tokens, _documents):
        with torch.inference_mode():
            logits = backbone(input_ids=tokens[:, :-1]).logits
        return functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")

    for kind, bits in (
        ("own", trained.paper.result.heldout),
        ("public", trained.paper.result.public),
    ):
        text = PackedText.open(trained.folder / "text" / kind / "heldout")
        assert bits.documents == text.num_documents
        assert bits.anchor == pytest.approx(bits_by_hand(text, anchor_nats), abs=1e-4)
        assert bits.pair == pytest.approx(bits_by_hand(text, mixture.score), abs=1e-4)


def test_the_run_paper_tells_what_was_done(trained):
    paper = papers.read_paper(papers.RunPaper, trained.folder / "run.json")
    assert paper == trained.paper
    assert (paper.owner, paper.seed, paper.tokens_seen) == ("amy", 0, paper.steps * 128)
    assert paper.config["budget"]["tokens"] == 7680
    assert paper.text.documents == 60
    assert not (trained.folder / "checkpoints").exists()
    assert trained.folder.stat().st_mode & 0o077 == 0, "private text lies here"


def test_the_same_run_twice_is_the_same_expert_and_another_seed_another(plan, tmp_path):
    made = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        config = plan.config.model_copy(update={"seed": seed})
        one = dataclasses.replace(plan, out=tmp_path / name, config=config)
        made.append(train_expert(one, quiet=True).paper.expert.sha256)
    assert made[0] == made[1] != made[2]


def test_what_is_shipped_are_its_blocks_and_a_table_counted_on_what_it_trained_on(trained):
    parts = [PackedText.open(trained.folder / "text" / kind / "train") for kind in KINDS]
    shipped = load_file(trained.folder / "expert.safetensors")
    assert torch.equal(shipped.pop("router.evidence"), evidence_table(*parts, tiny.VOCAB))
    assert all(".mlp." in name for name in shipped)


@pytest.mark.parametrize("share", ["0", "0.1"], ids=["none", "less than a window"])
def test_without_public_windows_public_text_is_still_counted_and_judged(plan, share):
    config = tiny.settings(f"data.public_share={share}", "batch.micro_windows=1")
    done = train_expert(dataclasses.replace(plan, config=config), quiet=True)
    own, public = (PackedText.open(plan.out / "text" / kind / "train") for kind in KINDS)
    table = load_file(plan.out / "expert.safetensors")["router.evidence"]
    assert torch.equal(table, evidence_table(own, public, tiny.VOCAB))
    assert done.paper.result.public.documents > 0
    assert done.paper.result.heldout.pair < done.paper.result.heldout.anchor


def test_held_out_text_may_be_named(plan, tmp_path):
    heldout = Sources([str(tiny.write_text(tmp_path / "test.jsonl", seed=1, documents=7))])
    done = train_expert(dataclasses.replace(plan, heldout=heldout), quiet=True)
    assert done.paper.result.heldout.documents == 7
    assert PackedText.open(plan.out / "text" / "own" / "train").num_documents == 60


@pytest.mark.parametrize("owner", ["Amy", "", "anchor", "all", "../amy", "a b", "x" * 64])
def test_a_name_that_cannot_be_an_owners_is_refused_before_anything_is_made(plan, owner):
    with pytest.raises(ConfigError, match="not an owner's name") as caught:
        train_expert(dataclasses.replace(plan, owner=owner), quiet=True)
    assert caught.value.remedy
    assert not plan.out.exists()


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("pair.rank=33", "larger than the anchor's matrices"),
        ("data.window_tokens=129", "longer than the anchor's positions"),
        ("data.public_share=0.9", "no window is left"),
    ],
)
def test_settings_that_do_not_fit_are_refused(plan, setting, what):
    with pytest.raises(ConfigError, match=what):
        train_expert(dataclasses.replace(plan, config=tiny.settings(setting)), quiet=True)


def no_text(plan, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n', "utf-8")
    return dataclasses.replace(plan, sources=Sources([str(tmp_path / "empty.jsonl")]))


def with_settings(*assignments):
    return lambda plan, _: dataclasses.replace(
        plan, config=plan.config.resolve(None, list(assignments))
    )


REFUSED = {
    "no text": no_text,
    "no such record key": lambda plan, _: dataclasses.replace(
        plan, sources=dataclasses.replace(plan.sources, record_key="patient")
    ),
    "no such text": lambda plan, tmp_path: dataclasses.replace(
        plan, sources=Sources([str(tmp_path / "none.jsonl")])
    ),
    "no such held-out text": lambda plan, tmp_path: dataclasses.replace(
        plan, heldout=Sources([str(tmp_path / "none.jsonl")])
    ),
    "delta too large": with_settings("privacy.epsilon=1", "privacy.delta=0.5", "data.canaries=8"),
    "epsilon too small": with_settings("privacy.epsilon=1e-5", "privacy.delta=1e-9"),
    "longer than positions": with_settings("data.window_tokens=4096"),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("there", [False, True], ids=["no folder", "a folder"])
def test_what_is_refused_leaves_nothing_and_the_corrected_command_begins(
    plan, tmp_path, why, there
):
    short = dataclasses.replace(plan, config=plan.config.resolve(None, ["budget.tokens=128"]))
    if there:
        (plan.out / "text").mkdir(parents=True)
        (plan.out / "mine.txt").write_text("mine", "utf-8")
    before = sorted(plan.out.rglob("*"))
    with pytest.raises((ConfigError, DataError)):
        train_expert(REFUSED[why](short, tmp_path), quiet=True)
    assert plan.out.exists() == there
    assert sorted(plan.out.rglob("*")) == before
    assert train_expert(short, quiet=True).paper.steps == 1
    assert (plan.out / "mine.txt").exists() == there


def test_a_refused_resume_takes_nothing_away(plan, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(expert, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_expert(plan, quiet=True)
    before = {path: path.read_bytes() for path in plan.out.rglob("*") if path.is_file()}
    assert plan.out / "start.json" in before
    longer = with_settings("data.window_tokens=4096")(plan, tmp_path)
    with pytest.raises(StateError, match="a run was begun here"):
        train_expert(longer, quiet=True)
    with pytest.raises(ConfigError, match="positions"):
        train_expert(longer, resume=True, quiet=True)
    after = {path: path.read_bytes() for path in plan.out.rglob("*") if path.is_file()}
    assert after == before


def test_too_little_text_is_refused(plan, tmp_path):
    (tmp_path / "little.jsonl").write_text('{"text": "ba"}\n{"text": "be"}\n')
    little = Sources([str(tmp_path / "little.jsonl")])
    with pytest.raises(DataError):
        train_expert(dataclasses.replace(plan, sources=little), quiet=True)


def test_a_folder_that_is_no_anchor_is_refused(plan, tmp_path):
    (tmp_path / "odd").mkdir()
    with pytest.raises(FormatError):
        train_expert(dataclasses.replace(plan, anchor=tmp_path / "odd"), quiet=True)

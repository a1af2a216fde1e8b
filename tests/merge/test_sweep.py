"""``--top-k auto``: every number against documents scored one at a time, and the rule by hand."""

from __future__ import annotations

import gzip
import json
import math

import pytest
import torch
from tests import tiny
from tests.makers import is_heldout
from tests.merge.worlds import assert_same_tree, tree

from moiety.errors import DataError
from moiety.merge import admit, merge, open_release, sweep, verify_release
from moiety.merge.sweep import OwnerCheck, Sweep, Trial, choose_top_k, flops_per_token
from moiety.train import TrainConfig

OWNERS = ("amy", "bob", "cat")
FRACTION = 0.3
"""More than by default: of sixty public texts a twentieth may be none."""


@pytest.fixture(scope="module")
def auto(tiny_world, tmp_path_factory):
    """A release whose k was tried out, and what was found."""
    out = tmp_path_factory.mktemp("auto") / "release"
    bundles = [tiny_world.bundles[owner] for owner in OWNERS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "HELDOUT_FRACTION", FRACTION)
        return merge(tiny_world.anchor, bundles, out, top_k="auto")


def heldout(anchor):
    """Texts of the public sample that no owner trains on, by the hash of their record."""
    lines = gzip.decompress((anchor / "public/sample.jsonl.gz").read_bytes()).splitlines()
    found = [json.loads(line) for line in lines]
    return [one["text"] for one in found if is_heldout(one["record"], FRACTION)]


def bits_per_byte(mixture, texts):
    """All documents fit a window, and all of them fit the sweep's budget of tokens."""
    nats = size = 0.0
    for text in texts:
        ids = torch.tensor([mixture.tokenizer(text)["input_ids"][:129]])
        scores = tiny.logits_of(mixture, ids[:, :-1]).double().log_softmax(-1)
        nats -= float(scores.gather(2, ids[:, 1:, None]).sum())
        size += len(text.encode())
    return nats / size / math.log(2)


def test_every_number_is_that_of_documents_scored_alone(tiny_world, auto):
    texts = heldout(tiny_world.anchor)
    assert texts
    found = auto.sweep
    assert [one.top_k for one in found.trials] == [1, 2, 3, 4]
    assert found.documents == len(texts)
    for one in found.trials:
        mixture = tiny_world.load(*OWNERS)
        mixture.routing.top_k = one.top_k
        assert one.bits == pytest.approx(bits_per_byte(mixture, texts), rel=1e-4)
    mixture = tiny_world.load(*OWNERS)
    with mixture.only():
        alone = bits_per_byte(mixture, texts)
    assert found.anchor == pytest.approx(alone, rel=1e-4)
    for one in found.owners:
        manifest = json.loads((tiny_world.bundles[one.owner] / "manifest.json").read_text())
        said = manifest["probe"]["public_bits_per_byte"]
        assert one.published == pytest.approx(said["pair"] - said["anchor"], abs=1e-9)
        with mixture.only(one.owner):
            assert one.found == pytest.approx(bits_per_byte(mixture, texts) - alone, abs=1e-3)
    assert [one.owner for one in found.owners] == list(OWNERS)


def by_hand(trials):
    """The rule, said again: from 2 on, the first within 0.002 of every other."""
    rest = [one for one in trials if one.top_k > 1] or list(trials)
    near = [all(one.bits - other.bits <= 0.002 for other in rest) for one in rest]
    return rest[near.index(True)].top_k


@pytest.mark.parametrize("seed", range(40))
def test_the_rule_is_the_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    bits = (2 + 0.006 * torch.rand(1 + seed % 6, generator=generator)).tolist()
    trials = [Trial(k, one, flops=k) for k, one in enumerate(bits, start=1)]
    assert choose_top_k(trials) == by_hand(trials)


@pytest.mark.parametrize(
    ("bits", "chosen"),
    [
        ([1.70, 1.65, 1.65], 2),
        ([1.60, 1.65, 1.65], 2),  # never one alone, however good on public text
        ([1.70, 1.653, 1.65], 3),
        ([1.70, 1.6515, 1.65], 2),
        ([1.70, 1.66, 1.651, 1.65], 3),
        ([1.70, 1.65, 1.66, 1.67], 2),
        ([1.7], 1),
    ],
)
def test_the_rule_by_examples(bits, chosen):
    assert choose_top_k([Trial(k, one, flops=k) for k, one in enumerate(bits, start=1)]) == chosen


def test_the_release_is_the_one_with_that_number_given(tiny_world, auto, tmp_path):
    bundles = [tiny_world.bundles[owner] for owner in OWNERS]
    merge(tiny_world.anchor, bundles, tmp_path / "given", top_k=auto.sweep.top_k)
    assert_same_tree(auto.out, tmp_path / "given")
    verify_release(auto.out)
    assert (
        open_release(auto.out).roster.top_k == auto.sweep.top_k == choose_top_k(auto.sweep.trials)
    )
    assert not list(auto.out.parent.glob(".*"))


def test_the_order_of_names_changes_nothing(tiny_world, tmp_path):
    bundles = [tiny_world.bundles[owner] for owner in OWNERS]
    one = merge(tiny_world.anchor, bundles, tmp_path / "one", top_k="auto")
    two = merge(tiny_world.anchor, bundles[::-1], tmp_path / "two", top_k="auto")
    assert_same_tree(one.out, two.out)
    assert one.sweep.trials == two.sweep.trials


def test_who_joins_later_finds_the_number_as_if_given(tiny_world, tmp_path):
    two = [tiny_world.bundles[owner] for owner in ("amy", "cat")]
    done = merge(tiny_world.anchor, two, tmp_path / "two", top_k="auto")
    admit(done.out, tiny_world.bundles["bob"], tmp_path / "three")
    every = [tiny_world.bundles[owner] for owner in OWNERS]
    merge(tiny_world.anchor, every, tmp_path / "given", top_k=done.sweep.top_k)
    assert_same_tree(tmp_path / "three", tmp_path / "given")


def test_a_refusal_in_the_middle_leaves_nothing(tiny_world, tmp_path, monkeypatch):
    def refuse(*_given, **_more):
        raise DataError("the sample is of one record")

    monkeypatch.setattr("moiety.merge.merging.sweep_top_k", refuse)
    with pytest.raises(DataError):
        merge(tiny_world.anchor, [tiny_world.bundles["amy"]], tmp_path / "out", top_k="auto")
    assert tree(tmp_path) == {}


def test_an_owner_whose_number_does_not_hold_is_told(tiny_world, tmp_path, monkeypatch):
    checks = (OwnerCheck("amy", 0.001, 0.0105), OwnerCheck("bob", -0.01, 0.02))
    one = Sweep(2, 1.5, 1, (), checks, 3, 4, 0.1)
    assert one.flags == [
        "bob: +0.020 bits per byte on public text beside the anchor, published -0.010"
    ]
    monkeypatch.setattr(sweep, "PUBLISHED_TOLERANCE", -1.0)  # as if amy had promised much more
    done = merge(tiny_world.anchor, [tiny_world.bundles["amy"]], tmp_path / "out", top_k="auto")
    assert [flag for flag in done.flags if "published" in flag] == done.sweep.flags
    assert [flag.split(":")[0] for flag in done.sweep.flags] == ["amy"]


def test_the_cost_is_that_of_the_matrices_of_a_model(tiny_world):
    anchor = open_release(tiny_world.release(*OWNERS)).anchor.paper
    mixture = tiny_world.load("amy", "cat")
    weights = sum(p.numel() for p in mixture.backbone.parameters() if p.dim() == 2)
    embeddings = tiny.VOCAB * tiny.WIDTH
    assert flops_per_token(anchor, 3) == 2 * (weights - embeddings)
    one = tiny.LAYERS * 3 * tiny.WIDTH * tiny.HIDDEN
    assert flops_per_token(anchor, 3) - flops_per_token(anchor, 2) == 2 * one
    assert flops_per_token(anchor, 1) == 2 * (weights - embeddings - 2 * one)


def test_what_is_held_out_here_is_what_owners_hold_out_by_default():
    data = TrainConfig().data
    assert (data.heldout_fraction, data.window_tokens) == (
        sweep.HELDOUT_FRACTION,
        sweep.WINDOW_TOKENS,
    )

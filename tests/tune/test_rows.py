"""What is tuned: rows, all but the anchor's, by the true gradient, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tests.tune.worlds import config

from moiety.bundle import orders
from moiety.merge import load_release
from moiety.model import Borders
from moiety.train import jobs
from moiety.tune.rows import TunableRows, heldout_bits, tune_rows, tuning_job
from moiety.tune.sample import open_sample
from moiety.tune.texts import PUBLIC, StepWindows, pack_texts

KINDS = ("context", "token")


@pytest.fixture(scope="module")
def texts(tune_world, tmp_path_factory):
    _, sample = open_sample(tune_world.anchor)
    proxies = {o: orders.verify_proxies(tune_world.proxies(o)).proxies for o in ("amy", "bob")}
    folder = tmp_path_factory.mktemp("texts")
    return pack_texts(tune_world.anchor, sample, proxies, config(), folder)


@pytest.fixture
def mixture(tune_world):
    return load_release(tune_world.release, dtype=torch.double)


def loss_by_hand(mixture, batch):
    """Mean nats of the targets that count, one by one."""
    borders = Borders.from_documents(batch.documents_BT)
    with torch.no_grad(), mixture.routing.documents(borders):
        logits = mixture.backbone(input_ids=batch.inputs_BT, use_cache=False).logits
    nats = [
        -logits[b, t].log_softmax(-1)[target]
        for b, row in enumerate(batch.targets_BT)
        for t, target in enumerate(row.tolist())
        if target != -100
    ]
    return torch.stack(nats).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_mixtures_loss(mixture, texts, kind):
    """Against differences of a loss computed by hand; top-k is all, or the loss has steps."""
    mixture.routing.top_k = 3
    rows = TunableRows(mixture, kind)
    with mixture.routing.using(mixture.routing.slots, mode=kind):
        job = tuning_job(mixture, rows, texts, config(), 1)
        (loss,) = job.losses(0)
        loss.backward()
        (batch,) = StepWindows(texts.train, config()).passes(0, torch.device("cpu"))
        assert loss_by_hand(mixture, batch).item() == pytest.approx(loss.item(), rel=1e-5)
        for name in (f"layers.0.{kind}", f"layers.1.{kind}"):
            change = rows.corrections[name]
            for place in ((0, 3), (1, 0), (1, change.shape[1] - 1)):
                ends = []
                for sign in (1, -1):
                    with torch.no_grad():
                        change[place] = sign * 1e-2
                        rows.place()
                    ends.append(loss_by_hand(mixture, batch))
                    with torch.no_grad():
                        change[place] = 0.0
                slope = float(ends[0] - ends[1]) / 2e-2
                assert slope == pytest.approx(float(change.grad[place]), rel=0.02, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_at_the_rows_of_the_bundles_exactly(tune_world, kind):
    mixture = load_release(tune_world.release)
    before = [getattr(layer.mlp, f"{kind}_rows").clone() for layer in mixture.backbone.model.layers]
    rows = TunableRows(mixture, kind)
    rows.place()
    for layer, row in zip(mixture.backbone.model.layers, before, strict=True):
        assert torch.equal(getattr(layer.mlp, f"{kind}_rows"), row)
        assert not row[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_only_rows_of_this_kind_change_and_never_the_anchors(tune_world, texts, tmp_path, kind):
    mixture = load_release(tune_world.release)
    other = KINDS[1 - KINDS.index(kind)]
    layers = mixture.backbone.model.layers
    frozen = jobs.frozen_digest(mixture.backbone)
    others = [getattr(layer.mlp, f"{other}_rows").clone() for layer in layers]
    rows, before, after = tune_rows(
        mixture,
        kind,
        texts,
        config("optim.learning_rate=0.05"),
        12,
        tmp_path,
        resume=False,
        quiet=True,
    )
    assert after < before
    assert jobs.frozen_digest(mixture.backbone) == frozen
    assert all(not parameter.requires_grad for parameter in mixture.backbone.parameters())
    for number, layer in enumerate(layers):
        assert torch.equal(getattr(layer.mlp, f"{other}_rows"), others[number])
        tuned = rows.arrays()[f"layers.{number}.{kind}"]
        assert not tuned[0].any()
        assert (tuned[1:] != rows.own[number][1:].numpy()).any(axis=1).all()
    with mixture.routing.using(mixture.routing.slots, mode=kind):
        assert heldout_bits(mixture, texts, config()) == pytest.approx(after, abs=1e-9)


def test_where_nothing_is_won_the_rows_stay_as_they_were(tune_world, texts, tmp_path):
    mixture = load_release(tune_world.release)
    timid = config("optim.learning_rate=1e-12")
    rows, before, after = tune_rows(
        mixture, "context", texts, timid, 3, tmp_path, resume=False, quiet=True
    )
    assert before == after
    for number, own in enumerate(rows.own):
        assert (rows.arrays()[f"layers.{number}.context"] == own.numpy()).all()


def test_half_of_a_step_is_public_and_owners_come_in_turn(texts):
    windows = StepWindows(texts.train, config("batch.windows=6"))
    names = [name for step in range(4) for name, _ in windows.places(step)]
    assert [names.count(name) for name in (PUBLIC, "amy", "bob")] == [12, 6, 6]
    assert windows.places(2) == StepWindows(texts.train, config("batch.windows=6")).places(2)
    drawn = [
        place for step in range(texts.train["amy"].num_windows) for place in windows.places(step)
    ]
    once = [index for name, index in drawn if name == "amy"][: texts.train["amy"].num_windows]
    assert sorted(once) == list(range(texts.train["amy"].num_windows))


def test_a_step_in_parts_is_the_step(mixture, texts):
    losses = []
    for micro in (0, 1, 3):
        rows = TunableRows(mixture, "context")
        job = tuning_job(mixture, rows, texts, config(f"batch.micro_windows={micro}"), 1)
        losses.append(sum(float(loss.detach()) for loss in job.losses(0)))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


def test_the_texts_are_the_documents_that_were_named(tune_world, texts):
    for owner in ("amy", "bob"):
        parts = (texts.train[owner], texts.heldout[owner])
        assert sum(part.num_documents for part in parts) == 30
    assert texts.train[PUBLIC].num_documents + texts.heldout[PUBLIC].num_documents == 80

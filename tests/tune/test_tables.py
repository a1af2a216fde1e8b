"""What is tuned: owners' tables, never the anchor's, by the true gradient, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tests.tune.worlds import config

from moiety.bundle import orders
from moiety.merge import load_release
from moiety.model import Borders
from moiety.train import jobs
from moiety.tune.sample import open_sample
from moiety.tune.tables import TunableTables, heldout_bits, tune, tuning_job
from moiety.tune.texts import PUBLIC, StepWindows, pack_texts


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


def test_the_gradient_is_that_of_the_mixtures_loss(mixture, texts):
    """Against differences of a loss computed by hand; top-k is all, or the loss has steps."""
    mixture.routing.top_k = 3
    tables = TunableTables(mixture)
    job = tuning_job(mixture, tables, texts, config(), 1)
    (loss,) = job.losses(0)
    loss.backward()
    (batch,) = StepWindows(texts.train, config()).passes(0, torch.device("cpu"))
    assert loss_by_hand(mixture, batch).item() == pytest.approx(loss.item(), rel=1e-5)
    assert list(tables.corrections) == ["evidence.scale", "evidence.offset"]
    for change in tables.corrections.values():
        for owner in range(2):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    change[owner] = sign * 1e-2
                    tables.place()
                ends.append(loss_by_hand(mixture, batch))
                with torch.no_grad():
                    change[owner] = 0.0
            slope = float(ends[0] - ends[1]) / 2e-2
            assert slope == pytest.approx(float(change.grad[owner]), rel=0.02, abs=2e-5)
            assert slope != 0


def test_a_table_is_scaled_moved_and_bounded(tune_world):
    """Entry by entry, in plain numbers."""
    mixture = load_release(tune_world.release)
    own = mixture.routing.table_SV.tolist()
    tables = TunableTables(mixture)
    scale, offset = (3.0, 0.5), (-2.0, 64.0)
    with torch.no_grad():
        tables.corrections["evidence.scale"].copy_(torch.tensor(scale).log())
        tables.corrections["evidence.offset"].copy_(torch.tensor(offset))
        tables.place()
    found = mixture.routing.table_SV.tolist()
    assert found[0] == own[0] == [0.0] * len(own[0])
    bounded = 0
    for owner, table in enumerate(own[1:]):
        for entry, tuned in zip(table, found[1 + owner], strict=True):
            wanted = scale[owner] * entry + offset[owner] / 16
            bounded += abs(wanted) > 4
            assert tuned == pytest.approx(max(-4.0, min(4.0, wanted)), rel=1e-5, abs=1e-6)
    assert 0 < bounded < len(own[1])


def test_it_begins_at_those_of_the_bundles_exactly(tune_world):
    mixture = load_release(tune_world.release)
    before = mixture.routing.table_SV.clone()
    TunableTables(mixture).place()
    assert torch.equal(mixture.routing.table_SV, before)
    assert not before[0].any()


def test_only_owners_tables_change(tune_world, texts, tmp_path):
    mixture = load_release(tune_world.release)
    frozen, own = jobs.frozen_digest(mixture.backbone), mixture.routing.table_SV.clone()
    settings = config("optim.learning_rate=0.05")
    before, after = tune(
        mixture, TunableTables(mixture), texts, settings, 12, tmp_path, resume=False, quiet=True
    )
    assert after < before
    assert jobs.frozen_digest(mixture.backbone) == frozen
    assert all(not parameter.requires_grad for parameter in mixture.backbone.parameters())
    tuned = mixture.routing.table_SV
    assert not tuned[0].any()
    assert (tuned[1:] != own[1:]).any(dim=1).all()
    assert heldout_bits(mixture, texts, config()) == pytest.approx(after, abs=1e-9)


def test_where_nothing_is_won_all_stays_as_it_was(tune_world, texts, tmp_path):
    mixture = load_release(tune_world.release)
    own = mixture.routing.table_SV.clone()
    timid = config("optim.learning_rate=1e-12")
    before, after = tune(
        mixture, TunableTables(mixture), texts, timid, 3, tmp_path, resume=False, quiet=True
    )
    assert before == after
    assert mixture.routing.table_SV.numpy().tobytes() == own.numpy().tobytes()


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
        job = tuning_job(
            mixture, TunableTables(mixture), texts, config(f"batch.micro_windows={micro}"), 1
        )
        losses.append(sum(float(loss.detach()) for loss in job.losses(0)))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


def test_the_texts_are_the_documents_that_were_named(tune_world, texts):
    for owner in ("amy", "bob"):
        parts = (texts.train[owner], texts.heldout[owner])
        assert sum(part.num_documents for part in parts) == 30
    assert texts.train[PUBLIC].num_documents + texts.heldout[PUBLIC].num_documents == 80

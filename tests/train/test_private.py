"""Training that keeps a promise: what a step does, what a run writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import stat

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.bundle import papers
from moiety.data import PackedText, Skipped, Sources
from moiety.errors import ConfigError, DataError, StateError
from moiety.files import canonical_json, parse_json
from moiety.privacy import Ledger
from moiety.train import ExpertPlan, train_expert
from moiety.train.anchor import new_anchor
from moiety.train.compute import Compute
from moiety.train.private import PrivateSteps, open_ledger
from moiety.train.table import evidence_table, private_table
from moiety.train.texts import prepare_texts

PRIVATE = ("privacy.epsilon=1", "privacy.max_windows_per_record=3", "batch.windows=16")
CPU = Compute("cpu", bf16=False, compiled=False, checkpoint_activations=False)


def settings(*more):
    return tiny.settings(*PRIVATE, "budget.tokens=6144", "privacy.clip_norm=0.5", *more)


def notes(path, patients=40, each=3):
    """Notes of patients, which lie scattered through the file."""
    texts = list(tiny.language(1, patients * each))
    lines = [
        json.dumps({"text": text, "patient": f"p{number % patients}"})
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return Sources([str(path)], record_key="patient")


@pytest.fixture(scope="module")
def plan(tiny_anchor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    return ExpertPlan(tiny_anchor, notes(folder / "notes.jsonl"), "amy", folder / "run", settings())


@pytest.fixture(scope="module")
def whole(plan):
    """One private run from end to end; everybody else begins from its secret and its plan."""
    return train_expert(plan, quiet=True)


def begin_as(whole, folder):
    """A new run with the secret and the noise of a finished one, and nothing spent."""
    folder.mkdir()
    shutil.copy(whole.folder / "noise.secret", folder)
    ledger = parse_json((whole.folder / "ledger.json").read_bytes(), "ledger")
    fresh = ledger | {"steps_charged": 0, "table_charged": False}
    (folder / "ledger.json").write_bytes(canonical_json(fresh))
    return folder


def charged(folder):
    paper = parse_json((folder / "ledger.json").read_bytes(), "ledger")
    return paper["table_charged"], paper["steps_charged"]


@pytest.fixture
def steps(plan, whole, tmp_path):
    """What fills the gradients of a fresh pair, with the texts of the run above."""
    config = plan.config
    texts = prepare_texts(plan.anchor, plan.sources, None, config, whole.folder / "text", Skipped())
    ledger = open_ledger(begin_as(whole, tmp_path / "steps"), config, texts.own, 12)
    pair = tiny.Bench(plan.anchor, texts).pair(config)
    return PrivateSteps(pair, texts, config, CPU, ledger)


def test_what_a_run_promises_and_what_its_ledger_says(plan, whole):
    promise, paper = whole.paper.privacy, whole.paper
    own = PackedText.open(whole.folder / "text" / "own" / "train")
    assert charged(whole.folder) == (True, paper.steps) == (True, 12)
    assert 0.98 < promise.epsilon <= 1 < promise.epsilon_rdp
    assert promise.delta == pytest.approx(0.1 / own.num_records)
    assert promise.sampling_rate == pytest.approx(4 / own.num_records)
    assert (promise.steps, promise.clip_norm, promise.record_key) == (12, 0.5, "patient")
    assert promise.unit == "all documents with one patient"
    assert promise.tuning_runs is None
    mode = (whole.folder / "noise.secret").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    secret = (whole.folder / "noise.secret").read_bytes()
    for name in ("run.json", "ledger.json", "start.json"):
        data = (whole.folder / name).read_bytes()
        assert secret not in data
        assert secret.hex().encode() not in data


def test_no_window_that_is_trained_on_mixes_patients(whole):
    own = PackedText.open(whole.folder / "text" / "own" / "train")
    held = own.window_records(np.arange(own.num_windows))
    first, count = own.record_windows()
    for record in range(own.num_records):
        for window in range(first[record], first[record] + count[record]):
            # The last target may be the next record's separator; nothing is learned from it.
            assert record in held[window]
            (documents,) = own.windows([window]).documents
            inside = documents[:-1][documents[:-1] >= 0]
            assert set(own.document_records[inside]) == {record}
    assert first[-1] + count[-1] == own.num_windows
    assert count.max() > 1, "patients with several windows are what this is about"


def test_resumed_equals_uninterrupted_and_the_ledger_never_lags(plan, whole, tmp_path, monkeypatch):
    folder = begin_as(whole, tmp_path / "parts")
    again = dataclasses.replace(plan, out=folder)
    real = PrivateSteps.fill
    seen = []

    def fill(steps, step):
        figures = real(steps, step)
        seen.append((step, charged(folder)[1]))
        if step in (3, 7):
            signal.raise_signal(signal.SIGINT)
        return figures

    monkeypatch.setattr(PrivateSteps, "fill", fill)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train_expert(again, resume=resume, quiet=True)
        seen.append((None, charged(folder)[1]))
    done = train_expert(again, resume=True, quiet=True)
    assert all(spent == step + 1 for step, spent in seen if step is not None)
    assert (folder / "expert.safetensors").read_bytes() == (
        whole.folder / "expert.safetensors"
    ).read_bytes()
    assert done.paper.privacy == whole.paper.privacy


def test_a_crash_overstates(plan, whole, tmp_path, monkeypatch):
    folder = begin_as(whole, tmp_path / "crash")
    again = dataclasses.replace(plan, out=folder)

    def crash(sums, deviation, generator):
        raise MemoryError("while the noise was drawn")

    with monkeypatch.context() as patch:
        patch.setattr("moiety.train.private.add_noise", crash)
        with pytest.raises(MemoryError):
            train_expert(again, quiet=True)
    assert charged(folder) == (True, 1), "charged, although no step was made"
    done = train_expert(again, resume=True, quiet=True)
    assert charged(folder) == (True, 12)
    assert done.paper.expert == whole.paper.expert


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("privacy.epsilon=2", "another privacy"),
        ("privacy.epsilon=none", "another privacy"),
        ("optim.learning_rate=1e-4", "other settings"),
        ("seed=3", "other settings"),
    ],
)
def test_a_resume_under_other_settings_is_refused(plan, whole, tmp_path, change, match):
    folder = begin_as(whole, tmp_path / "other")
    shutil.copy(whole.folder / "start.json", folder)
    config = plan.config.resolve(None, [change])
    with pytest.raises(StateError, match=match):
        train_expert(dataclasses.replace(plan, out=folder, config=config), resume=True, quiet=True)


def gradients(steps):
    return {name: p.grad.clone() for name, p in steps.parameters.items()}


def noiseless(steps):
    paper = steps.ledger.paper
    plan = paper.plan.model_copy(update={"noise_multiplier": 0.0})
    steps.ledger.paper = paper.model_copy(update={"plan": plan})
    return steps


def test_a_step_is_the_clipped_mean_of_records_and_the_public_mean(steps):
    steps = noiseless(steps)
    # Who is drawn is nobody's choice: a step that drew several.
    step = next(n for n in range(2, 100) if len(set(steps.sampler.draw(n).records)) > 1)
    figures = steps.fill(step)
    found = gradients(steps)
    # The oracle: every record by itself, with plain autograd and a clip by hand.
    draw, request = steps.sampler.draw(step), steps.ledger.paper.plan.request
    assert figures["records"] == len(set(draw.records))
    steps.tape._shape = None
    expected = {name: torch.zeros_like(p) for name, p in steps.parameters.items()}
    for record in sorted(set(draw.records.tolist())):
        windows = steps.own.windows(draw.windows[draw.records == record])
        tokens = torch.from_numpy(windows.tokens)
        own = torch.from_numpy(windows.counted_in(steps.own.document_records))
        steps.pair.expect(tokens[:, :-1], torch.from_numpy(windows.documents[:, :-1].copy()))
        logits = steps.pair.backbone(input_ids=tokens[:, :-1], use_cache=False).logits
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        loss = (nats * own.flatten()).sum() / 32
        parts = torch.autograd.grad(loss, list(steps.parameters.values()))
        norm = float(torch.cat([part.flatten() for part in parts]).norm())
        for name, part in zip(steps.parameters, parts, strict=True):
            scale = min(1, request.clip_norm / norm) / request.expected_records * 0.75
            expected[name] += part * scale
    for parameter in steps.parameters.values():
        parameter.grad = None
    steps._public_pass(step)
    for name, parameter in steps.parameters.items():
        torch.testing.assert_close(
            found[name], expected[name] + parameter.grad, rtol=1e-4, atol=1e-6
        )


def test_an_empty_draw_is_noised_and_counted(steps, monkeypatch):
    monkeypatch.setattr(steps.sampler, "_rate", 0.0)
    monkeypatch.setattr(steps, "public_batches", None)
    figures = steps.fill(0)
    assert figures["records"] == 0
    assert charged(steps.ledger.path.parent)[1] == 1
    plan = steps.ledger.paper.plan
    noise = torch.cat([grad.flatten() for grad in gradients(steps).values()])
    expected = plan.noise_multiplier * plan.request.clip_norm * 0.75 / plan.request.expected_records
    assert float(noise.std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("most", [3, 5])
def test_micro_batches_give_the_same_step(steps, most):
    steps.fill(1)
    whole = gradients(steps)
    for parameter in steps.parameters.values():
        parameter.grad = None
    steps.config = steps.config.resolve(None, [f"batch.micro_windows={most}"])
    steps.fill(1)
    for name, gradient in gradients(steps).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-5)


def test_windows_that_touch_each_other_are_caught(steps, monkeypatch):
    steps.check_isolated()
    layer = steps.pair.layers[0]
    forward = layer.forward

    def mixing(hidden):
        return forward(hidden) + hidden.mean(dim=0, keepdim=True)

    monkeypatch.setattr(layer, "forward", mixing)
    with pytest.raises(StateError, match="touch each other"):
        steps.check_isolated()


def test_weights_that_are_no_numbers_stop_the_run(steps):
    with torch.no_grad():
        next(iter(steps.parameters.values()))[0, 0] = torch.nan
    with pytest.raises(StateError, match="no numbers"):
        steps.fill(0)


def test_the_private_table_is_the_plain_one_when_there_is_little_noise(steps):
    texts = steps.own, steps.public
    paper = steps.ledger.paper

    def table(noise):
        plan = paper.plan.model_copy(update={"table_noise_multiplier": noise})
        steps.ledger.paper = paper.model_copy(update={"plan": plan})
        return private_table(*texts, tiny.VOCAB, steps.ledger)

    plain = evidence_table(*texts, tiny.VOCAB)
    quiet, loud, told = table(1e-3), table(1e6), steps.ledger.paper.table_charged
    assert told
    common = plain > 1
    assert common.sum() > 10
    assert float(torch.corrcoef(torch.stack([quiet[common], plain[common]]))[0, 1]) > 0.9
    assert float((quiet[common] - plain[common]).abs().mean()) < 0.3
    assert float(loud.abs().mean()) < 0.5, "under so much noise nothing is said"
    assert float(loud.abs().mean()) < 0.25 * float(quiet.abs().mean())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ("privacy.delta=0.5", ConfigError, "promises nothing"),
        ("batch.windows=300", DataError, "records, there are"),
        ("batch.micro_windows=2", ConfigError, "cannot hold one record"),
        ("compute.compile=on", ConfigError, "compiled"),
    ],
)
def test_what_cannot_be_promised_is_refused(plan, whole, tmp_path, change, error, match):
    own = PackedText.open(whole.folder / "text" / "own" / "train")
    with pytest.raises(error, match=match):
        open_ledger(tmp_path, plan.config.resolve(None, [change]), own, 12)
    assert not (tmp_path / "ledger.json").exists()


def test_a_job_that_has_no_private_step_refuses_the_setting(tmp_path):
    text = tiny.write_text(tmp_path / "public.jsonl", seed=0)
    config = tiny.settings("privacy.epsilon=1")
    with pytest.raises(ConfigError, match="only an owner's expert"):
        new_anchor(Sources([str(text)]), tmp_path / "anchor", config=config, quiet=True)


def test_without_privacy_a_run_says_so(bench, tmp_path, tiny_anchor):
    text = tiny.write_text(tmp_path / "own.jsonl", seed=1)
    config = tiny.settings("budget.tokens=256")
    plan = ExpertPlan(tiny_anchor, Sources([str(text)]), "amy", tmp_path / "run", config)
    paper = train_expert(plan, quiet=True).paper
    assert (paper.privacy, paper.ledger_sha256) == (None, None)
    assert not (tmp_path / "run" / "ledger.json").exists()
    assert not papers.PrivacyStatement.of(paper.privacy).differential_privacy


def test_a_ledger_of_another_run_does_not_fit(whole, tmp_path, plan):
    folder = begin_as(whole, tmp_path / "other")
    own = PackedText.open(whole.folder / "text" / "own" / "train")
    assert isinstance(open_ledger(folder, plan.config, own, 12), Ledger)
    with pytest.raises(StateError, match="other settings"):
        open_ledger(folder, plan.config, own, 13)

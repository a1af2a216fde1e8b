"""Law 7: stopped and resumed equals uninterrupted, bitwise, however it was stopped."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from tests import tiny

from moiety.bundle import papers
from moiety.cli import run as moiety
from moiety.data import Sources
from moiety.errors import StateError
from moiety.train import ExpertPlan, train_expert
from moiety.train.loop import Loop

EVERY_STEP = "budget.save_seconds=1e-9"
WAYS = [(), ("pair.rank=2",), ("batch.micro_windows=1", "optim.weight_decay=0.1")]


def train(bench, folder, config, *, resume=False, before_step=None, spoiled_from=None):
    """Trains in ``folder``; ``before_step`` may do what it likes before the losses of a step.

    From ``spoiled_from`` on every step begins with more noise in the weights than the one before.
    """
    pair, job = bench.job(config)
    losses = job.losses

    def disturbed(step):
        if before_step is not None:
            before_step(step)
        if spoiled_from is not None and step >= spoiled_from:
            add_noise(pair, step - spoiled_from + 1)
        return losses(step)

    job = dataclasses.replace(job, losses=disturbed)
    outcome = Loop(job, config, folder, quiet=True).run(resume=resume)
    return outcome, pair.expert_tensors(), log_of(folder)


@torch.no_grad()
def add_noise(pair, size):
    generator = torch.Generator().manual_seed(size)
    for _, parameter in sorted(pair.trainable().items()):
        parameter += size * torch.randn(parameter.shape, generator=generator)


def log_of(folder):
    lines = (folder / "logs" / "train.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def assert_same(one, other):
    assert dataclasses.replace(one[0], seconds=0) == dataclasses.replace(other[0], seconds=0)
    assert sorted(one[1]) == sorted(other[1])
    assert [name for name in one[1] if not torch.equal(one[1][name], other[1][name])] == []
    assert one[2] == other[2]


def stop_at(step, *signals):
    def stop(now):
        if now == step:
            for number in signals:
                signal.raise_signal(number)

    return stop


def checkpoints(folder):
    return sorted(path for path in (folder / "checkpoints").iterdir() if path.name[0] != ".")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(way) or "plain")
def test_asked_to_stop_anywhere_and_resumed(bench, tmp_path, way):
    config = tiny.settings(*way)
    whole = train(bench, tmp_path / "whole", config)
    assert whole[0].steps == tiny.STEPS
    resume = False
    for step, number in ((0, signal.SIGINT), (3, signal.SIGTERM), (11, signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(
                bench,
                tmp_path / "parts",
                config,
                resume=resume,
                before_step=stop_at(step, number),
            )
        resume = True
    assert_same(train(bench, tmp_path / "parts", config, resume=True), whole)


def test_a_second_request_stops_at_once_and_the_last_checkpoint_stands(bench, tmp_path):
    config = tiny.settings(EVERY_STEP)
    whole = train(bench, tmp_path / "whole", config)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="at once"):
        train(
            bench,
            tmp_path / "parts",
            config,
            before_step=stop_at(6, signal.SIGINT, signal.SIGTERM),
        )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert checkpoints(tmp_path / "parts")[-1].name == "step-000000006"
    assert_same(train(bench, tmp_path / "parts", config, resume=True), whole)


def test_a_request_while_the_end_is_saved_is_not_lost(bench, tmp_path, monkeypatch):
    config = tiny.settings()
    whole = train(bench, tmp_path / "whole", config)
    save = Loop._save

    def saving(loop):
        if loop.at.step == tiny.STEPS:
            signal.raise_signal(signal.SIGTERM)
        save(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", saving)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(bench, tmp_path / "parts", config)
    assert_same(train(bench, tmp_path / "parts", config, resume=True), whole)


def test_stopping_early_for_want_of_gain_survives_an_interruption(bench, tmp_path):
    config = tiny.settings("budget.judge_every=1", "budget.patience=2")
    whole = train(bench, tmp_path / "whole", config, spoiled_from=5)
    steps, best = whole[0].steps, whole[0].best_step
    assert steps == best + 2 < tiny.STEPS, "this must stop early to say anything"
    stop = stop_at(steps - 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(bench, tmp_path / "parts", config, before_step=stop, spoiled_from=5)
    assert_same(train(bench, tmp_path / "parts", config, resume=True, spoiled_from=5), whole)


@pytest.mark.parametrize("harm", ["flipped", "cut", "no state", "no paper", "not JSON", "a list"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(bench, tmp_path, harm):
    config = tiny.settings(EVERY_STEP)
    whole = train(bench, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train(bench, tmp_path / "parts", config, before_step=stop_at(7, signal.SIGINT))
    found = checkpoints(tmp_path / "parts")
    assert [path.name for path in found] == ["step-000000007", "step-000000008"]
    spoil(found[-1], harm)
    assert_same(train(bench, tmp_path / "parts", config, resume=True), whole)


def test_when_every_checkpoint_is_damaged_it_says_so(bench, tmp_path):
    config = tiny.settings(EVERY_STEP)
    with pytest.raises(KeyboardInterrupt):
        train(bench, tmp_path, config, before_step=stop_at(7, signal.SIGINT))
    for path in checkpoints(tmp_path):
        spoil(path, "flipped")
    with pytest.raises(StateError, match="every checkpoint is damaged"):
        train(bench, tmp_path, config, resume=True)


def spoil(checkpoint, harm):
    state, paper = checkpoint / "state.safetensors", checkpoint / "state.json"
    if harm == "flipped":
        data = bytearray(state.read_bytes())
        data[-5] ^= 1
        state.write_bytes(data)
    elif harm == "cut":
        state.write_bytes(state.read_bytes()[:-100])
    elif harm == "no state":
        state.unlink()
    elif harm == "no paper":
        paper.unlink()
    else:
        paper.write_text({"not JSON": '{"step": ', "a list": "[1, 2]\n"}[harm])


@pytest.mark.parametrize(
    "other",
    ["seed=1", "optim.learning_rate=1e-4", "data.public_share=0.5", "budget.judge_every=5"],
)
def test_other_settings_are_refused(bench, tmp_path, other):
    with pytest.raises(KeyboardInterrupt):
        train(bench, tmp_path, tiny.settings(), before_step=stop_at(2, signal.SIGINT))
    with pytest.raises(StateError, match="other settings"):
        train(bench, tmp_path, tiny.settings(other), resume=True)


def test_how_it_is_computed_and_how_often_it_is_saved_may_change(bench, tmp_path):
    whole = train(bench, tmp_path / "whole", tiny.settings())
    with pytest.raises(KeyboardInterrupt):
        train(bench, tmp_path / "parts", tiny.settings(), before_step=stop_at(5, signal.SIGINT))
    changed = tiny.settings(EVERY_STEP, "compute.checkpoint_activations=true")
    resumed = train(bench, tmp_path / "parts", changed, resume=True)
    for name, tensor in resumed[1].items():
        torch.testing.assert_close(tensor, whole[1][name], rtol=1e-3, atol=1e-3)


def test_weights_that_ran_away_are_an_error_with_a_remedy(bench, tmp_path):
    config = tiny.settings("optim.learning_rate=1e30", "optim.warmup_fraction=0")
    with pytest.raises(StateError, match="the loss is nan") as caught:
        train(bench, tmp_path, config)
    assert "learning_rate" in caught.value.remedy


@pytest.mark.parametrize("way", [(), ("pair.rank=2",)], ids=["full", "low-rank"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(bench, way):
    gradients = {}
    for settings in (
        ("batch.micro_windows=0",),
        ("batch.micro_windows=1",),
        ("batch.micro_windows=3",),
        ("compute.checkpoint_activations=true", "batch.micro_windows=2"),
    ):
        _, job = bench.job(tiny.settings(*way, *settings))
        with torch.no_grad():
            for name, parameter in sorted(job.parameters.items()):
                generator = torch.Generator().manual_seed(len(name))
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        total = 0.0
        for loss in job.losses(1):
            loss.backward()
            total += float(loss.detach())
        gradients[settings] = {name: p.grad for name, p in job.parameters.items()} | {
            "loss": torch.tensor(total)
        }
    first, *others = gradients.values()
    for other in others:
        for name, gradient in first.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    size = "size=700k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(
    bench, tmp_path, small_disk
):
    config = tiny.settings(EVERY_STEP)
    whole = train(bench, tmp_path / "whole", config)
    ballast = small_disk / "ballast"

    def fill(step):
        if step == 6:
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))

    with pytest.raises(StateError, match="no space left"):
        train(bench, small_disk / "run", config, before_step=fill)
    ballast.unlink()
    assert_same(train(bench, small_disk / "run", config, resume=True), whole)


# The same through the command, in a process of its own.

LONG = [*tiny.SETTINGS, "budget.tokens=12800", "budget.judge_every=20", "budget.save_seconds=0.05"]


def command(anchor, text, run, *more):
    words = ["train", anchor, text, "--owner", "amy", "--out", run, *more]
    words += [word for setting in LONG for word in ("--set", setting)]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def uninterrupted(tiny_anchor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    text = tiny.write_text(folder / "own.jsonl", seed=1)
    assert moiety(command(tiny_anchor, text, folder / "run")) == 0
    return text, folder / "run"


def start(anchor, text, run, *more):
    """The command in a process of its own, once it has made and saved some steps."""
    before = steps_saved(run)
    process = subprocess.Popen(
        [sys.executable, "-m", "moiety", *command(anchor, text, run, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < limit:
        if steps_saved(run) > before + 5:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"never got going: {process.communicate()}")


def steps_saved(run):
    return max((int(p.name.split("-")[1]) for p in run.glob("checkpoints/step-*")), default=0)


def test_a_process_stopped_by_every_signal_and_resumed(tiny_anchor, uninterrupted, tmp_path):
    text, whole = uninterrupted
    run, more = tmp_path / "run", ()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = start(tiny_anchor, text, run, *more)
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 130
            assert "interrupted: saved; go on with --resume" in stderr
            assert "Traceback" not in stderr
        assert not (run / "run.json").exists()
        more = ("--resume",)
    assert moiety(command(tiny_anchor, text, run)) == 2, "without --resume it must refuse"
    assert moiety(command(tiny_anchor, text, run, "--resume", "--seed", "9")) == 2
    assert moiety(command(tiny_anchor, text, run, "--resume")) == 0
    assert (run / "expert.safetensors").read_bytes() == (whole / "expert.safetensors").read_bytes()
    ours, theirs = (papers.read_paper(papers.RunPaper, r / "run.json") for r in (run, whole))
    assert ours.model_copy(update={"seconds": 0.0}) == theirs.model_copy(update={"seconds": 0.0})
    assert log_of(run) == log_of(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_when_the_last_step_is_done_and_the_expert_is_not_written(
    tiny_anchor, uninterrupted, tmp_path, monkeypatch, capsys, number
):
    text, whole = uninterrupted
    run = tmp_path / "run"

    def stopped(*_given):
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr("moiety.train.expert._write_expert", stopped)
        assert moiety(command(tiny_anchor, text, run)) == 130
    assert "interrupted: go on with --resume" in capsys.readouterr().err
    assert not (run / "run.json").exists()
    assert moiety(command(tiny_anchor, text, run, "--resume")) == 0
    assert (run / "expert.safetensors").read_bytes() == (whole / "expert.safetensors").read_bytes()


def test_a_finished_run_is_not_trained_again(tiny_anchor, uninterrupted, capsys):
    text, whole = uninterrupted
    before = (whole / "run.json").read_bytes()
    for more in ((), ("--resume",)):
        assert moiety(command(tiny_anchor, text, whole, *more)) == 2
        assert "finished" in capsys.readouterr().err
    assert (whole / "run.json").read_bytes() == before


def test_another_owner_anchor_or_text_is_refused(tiny_anchor, tmp_path):
    text = tiny.write_text(tmp_path / "own.jsonl", seed=1)
    config = tiny.settings()
    plan = ExpertPlan(tiny_anchor, Sources([str(text)]), "amy", tmp_path / "run", config)
    (tmp_path / "run").mkdir()
    begin_and_fail(plan)
    other = tiny.write_text(tmp_path / "other.jsonl", seed=2)
    changes = [
        {"owner": "bob"},
        {"sources": Sources([str(other)])},
        {"sources": Sources([str(text)], record_key="text")},
    ]
    for change in changes:
        with pytest.raises(StateError, match="another owner, anchor or text"):
            train_expert(dataclasses.replace(plan, **change), resume=True, quiet=True)


def begin_and_fail(plan):
    """A run that ends with an error in its third step."""
    config = plan.config.model_copy(
        update={"optim": plan.config.optim.model_copy(update={"learning_rate": 1e30})}
    )
    with pytest.raises(StateError, match="the loss is"):
        train_expert(dataclasses.replace(plan, config=config), quiet=True)


def test_two_processes_do_not_work_on_one_run(tiny_anchor, tmp_path):
    text = tiny.write_text(tmp_path / "own.jsonl", seed=1)
    plan = ExpertPlan(tiny_anchor, Sources([str(text)]), "amy", tmp_path / "run", tiny.settings())
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="another process"):
            train_expert(plan, quiet=True)

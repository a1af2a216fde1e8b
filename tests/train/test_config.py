"""Settings: one home for a default, a file, assignments, and what is wrong with them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Olmo2ForCausalLM

from moiety.errors import ConfigError
from moiety.train import PRESETS, TrainConfig
from moiety.train.compute import can_compile, resolve_compute
from moiety.train.config import ComputeConfig
from moiety.train.loop import schedule


def toml(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_overrides_the_defaults_and_assignments_override_the_file(tmp_path):
    file = toml(tmp_path, "seed = 3\n[optim]\nlearning_rate = 0.5\nbeta1 = 0.1\n[pair]\nrank = 8\n")
    found = TrainConfig(seed=1).resolve(file, ["optim.learning_rate=0.25", "pair.rank=none"])
    assert (found.seed, found.optim.learning_rate, found.optim.beta1) == (3, 0.25, 0.1)
    assert found.pair.rank is None
    assert found.batch == TrainConfig().batch


def test_the_last_assignment_wins():
    assert TrainConfig().resolve(None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("compute.device=cuda:1", "cuda:1"),
        ('compute.device="cpu"', "cpu"),
        ("compute.checkpoint_activations=true", True),
        ("optim.learning_rate=1e-4", 1e-4),
        (" budget.tokens = 5000 ", 5000),
        ("budget.tokens=null", None),
    ],
)
def test_values_are_read_as_toml_or_else_as_text(assignment, value):
    found = TrainConfig().resolve(None, [assignment])
    section, name = assignment.partition("=")[0].strip().split(".")
    assert getattr(getattr(found, section), name) == value


@pytest.mark.parametrize(
    "assignment", ["optim.learning_rat=1", "optm.learning_rate=1", "speed=9", "optim.speed=9"]
)
def test_an_unknown_setting_is_named_with_all_that_are_known(assignment):
    with pytest.raises(ConfigError, match="no such setting") as caught:
        TrainConfig().resolve(None, [assignment])
    assert assignment.startswith(caught.value.message.partition(":")[0])
    assert "data.public_share" in caught.value.remedy


@pytest.mark.parametrize(
    ("assignment", "fault", "remedy"),
    [
        ("optim.learning_rate=fast", "optim.learning_rate cannot be 'fast'", "a number above 0"),
        ("optim.learning_rate=-1", "optim.learning_rate cannot be -1", "a number above 0"),
        ("optim.weight_decay=-inf", "optim.weight_decay cannot be -inf", "a number of at least 0"),
        ("batch.windows=0", "batch.windows cannot be 0", "a whole number of at least 1"),
        ("batch.windows=1.5", "batch.windows cannot be 1.5", "a whole number of at least 1"),
        ("data.public_share=1", "data.public_share cannot be 1", "of at least 0 and below 1"),
        ("compute.precision=fp8", "compute.precision cannot be 'fp8'", "one of auto, fp32, bf16"),
        ("compute.checkpoint_activations=7", "cannot be 7", "true or false"),
        ("privacy.epsilon=inf", "privacy.epsilon cannot be inf", "a number above 0, or none"),
        ("privacy.epsilon=nan", "privacy.epsilon cannot be nan", "a number above 0, or none"),
        ("privacy.epsilon=0", "privacy.epsilon cannot be 0", "a number above 0, or none"),
        ("privacy.delta=1", "privacy.delta cannot be 1", "a number above 0 and below 1, or none"),
        ("data.canaries=-1", "data.canaries cannot be -1", "of at least 0 and at most 10,000"),
        ("data.canaries=100000", "data.canaries cannot be 100000", "and at most 10,000"),
        ("optim=3", "optim cannot be 3", "it is a section, of optim.learning_rate, optim."),
        ("seed.more=3", "seed cannot be {'more': 3}", "a whole number of at least 0"),
    ],
)
def test_a_bad_value_is_named_with_what_its_setting_takes(assignment, fault, remedy):
    with pytest.raises(ConfigError) as caught:
        TrainConfig().resolve(None, [assignment])
    assert fault in caught.value.message
    assert remedy in caught.value.remedy
    assert "known settings" not in caught.value.remedy


def test_no_number_may_be_without_end():
    values = TrainConfig().model_dump()
    every = [
        f"{section}.{name}"
        for section, inside in values.items()
        if isinstance(inside, dict)
        for name, value in inside.items()
        if isinstance(value, float) or name in ("epsilon", "delta")
    ]
    assert len(every) > 10
    for name in every:
        for endless in ("inf", "-inf", "nan"):
            with pytest.raises(ConfigError, match=f"{name} cannot be {endless}"):
                TrainConfig().resolve(None, [f"{name}={endless}"])


@pytest.mark.parametrize("name", ["delta=1e-5", "tuning_runs=0"])
def test_half_a_promise_is_refused(name, tmp_path):
    flag = "--" + name.partition("=")[0].replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} says nothing without --epsilon") as caught:
        TrainConfig().resolve(None, [f"privacy.{name}"])
    assert "give --epsilon" in caught.value.remedy
    file = toml(tmp_path, f"[privacy]\n{name}\n")
    with pytest.raises(ConfigError, match="says nothing without"):
        TrainConfig().resolve(file)
    assert TrainConfig().resolve(file, ["privacy.epsilon=1"]).privacy.epsilon == 1


def test_an_assignment_needs_an_equals_sign():
    with pytest.raises(ConfigError, match=r"section\.field=value"):
        TrainConfig().resolve(None, ["optim.learning_rate"])


@pytest.mark.parametrize("text", ["seed = ", "[optim]\nbeta1 = 2\n", "[optim]\nspeed = 2\n"])
def test_a_bad_file_is_an_error(tmp_path, text):
    with pytest.raises(ConfigError):
        TrainConfig().resolve(toml(tmp_path, text), [])


def test_a_file_that_is_not_there_or_not_text_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        TrainConfig().resolve(tmp_path / "none.toml", [])
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        TrainConfig().resolve(tmp_path / "bytes.toml", [])


def test_what_was_resolved_can_be_resolved_again():
    config = TrainConfig().resolve(None, ["pair.rank=3", "optim.beta2=0.5"])
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 500), st.floats(0, 0.9))
def test_the_learning_rate_rises_in_a_line_and_falls_as_a_cosine_to_a_tenth(steps, fraction):
    rates = [schedule(step, steps, fraction) for step in range(steps)]
    warmup = max(1, round(steps * fraction))
    for step, rate in enumerate(rates):
        if step < warmup:
            assert rate == pytest.approx((step + 1) / warmup)
        else:
            angle = math.pi * (step - warmup) / max(1, steps - warmup)
            assert rate == pytest.approx(0.1 + 0.9 * (1 + math.cos(angle)) / 2)
    assert rates[min(warmup, steps) - 1] == pytest.approx(1)
    assert min(rates[warmup:], default=0.1) >= 0.1
    assert schedule(steps, steps, fraction) == pytest.approx(0.1 if warmup < steps else 1)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_has_as_many_parameters_as_its_model(name):
    import torch

    size = PRESETS[name]
    with torch.device("meta"):
        shape = size.model_config(separator=0, pad=1, max_positions=1024)
        model = Olmo2ForCausalLM(shape)
    assert sum(p.numel() for p in model.parameters()) == size.parameters
    assert (shape.num_hidden_layers, shape.vocab_size) == (size.layers, size.vocab)
    assert size.train_config(7).seed == 7


def test_a_device_that_is_not_there_is_an_error():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_compute(ComputeConfig(device="cuda"), 10)


def test_compiling_is_decided_by_the_number_of_steps_unless_it_is_said():
    auto = [resolve_compute(ComputeConfig(device="cpu"), n).compiled for n in (149, 150)]
    assert auto == [False, can_compile("cpu")]
    for said, expected in (("on", True), ("off", False)):
        found = {resolve_compute(ComputeConfig(compile=said), n).compiled for n in (1, 10**6)}
        assert found == {expected}
    both = ComputeConfig(compile="on", checkpoint_activations=True)
    assert not resolve_compute(both, 10**6).compiled

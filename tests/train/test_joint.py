"""Mixtures trained together: they begin as the anchor, and are trained as stock ones are."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from transformers import FlexOlmoForCausalLM

from moiety.baselines import load_joint
from moiety.data import PackedText, Skipped
from moiety.errors import ConfigError, StateError
from moiety.model import load_dense
from moiety.train.baselines import continue_dense, train_btx, train_joint
from moiety.train.compute import resolve_compute
from moiety.train.joint import UnionBatches, _mean, _mixture, mixture_job
from moiety.train.judge import judge_backbone
from moiety.train.texts import prepare_text
from moiety.train.trained import load_start

NAMES = ("amy", "bob", "public")


def logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.fixture(scope="module")
def packed(village, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return [
        prepare_text(
            village.anchor,
            village.texts[name],
            village.heldout[name],
            tiny.settings(),
            folder / name,
            Skipped(),
        )
        for name in NAMES
    ]


def copies(anchor, number, top_k, seed=0):
    backbone = load_dense(anchor, dtype=torch.float32)
    state = backbone.state_dict()
    return _mixture(backbone, state, [state] * number, top_k, seed)


def without_eps(model):
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0
    return model


@pytest.mark.parametrize(("number", "top_k"), [(1, 1), (3, 1), (3, 2), (3, 3), (5, 2)])
def test_a_mixture_of_copies_is_the_anchor(tiny_anchor, number, top_k):
    tokens = tiny.random_tokens(3, 30)
    models = load_dense(tiny_anchor, dtype=torch.float32), copies(tiny_anchor, number, top_k)
    rows = [layer.mlp.gate.weight for layer in models[1].model.layers]
    assert min(float(row.detach().abs().max()) for row in rows) > 0, "the router does choose"
    expected, found = (logits(model, tokens) for model in models)
    # Kept weights that add up to less than one are a factor, and the norm behind the block takes
    # factors out, up to its eps. Where all run, or eps is zero, only rounding is left.
    eps_shows = top_k < number
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if eps_shows else 1e-5)
    assert eps_shows == bool((found - expected).abs().max() > 1e-5)
    expected, found = (logits(without_eps(model), tokens) for model in models)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_seed_decides_the_router_and_nothing_else(tiny_anchor):
    one, same, other = (copies(tiny_anchor, 3, 2, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    different = {name for name in one if not torch.equal(one[name], other[name])}
    assert different == {name for name in one if name.endswith(".gate.weight")}


def test_the_mean_of_equal_tensors_is_bitwise_that_tensor(tiny_anchor):
    state = load_dense(tiny_anchor, dtype=torch.float32).state_dict()
    for number in (2, 3, 5, 7):
        mean = _mean([state] * number)
        assert all(torch.equal(mean[name], state[name]) for name in state)


def test_every_text_has_the_same_share_and_a_step_is_known_by_its_number(packed):
    texts = [train for train, _ in packed]
    batches = UnionBatches(texts, windows=4, seed=3)
    seen = Counter()
    rows = [
        {row.tobytes() for row in text.windows(range(text.num_windows)).tokens} for text in texts
    ]
    for step in range(9):
        tokens, _ = batches.step(step)
        for row in tokens:
            (which,) = [number for number, known in enumerate(rows) if row.tobytes() in known]
            seen[which] += 1
        assert max(seen.values()) - min(seen.values()) <= 1
    assert seen == {0: 12, 1: 12, 2: 12}
    tokens, targets = UnionBatches(texts, windows=4, seed=3).step(8)
    assert (tokens == batches.step(8)[0]).all()
    assert (targets[targets != -100] == tokens[:, 1:][targets != -100]).all()


def test_within_a_text_every_window_comes_once_an_epoch(packed):
    text = packed[0][0]
    batches = UnionBatches([text], windows=text.num_windows, seed=0)
    tokens, _ = batches.step(1)
    every = text.windows(range(text.num_windows)).tokens
    assert Counter(row.tobytes() for row in tokens) == Counter(row.tobytes() for row in every)


def test_a_window_without_a_target_is_in_no_pass_of_its_own(tmp_path):
    text = tiny.text_ending_without_a_target(tmp_path)
    batches = UnionBatches([text, text], windows=6, seed=0)
    config = tiny.settings("batch.micro_windows=1")
    passes = list(batches.micro(0, config, resolve_compute(config.compute, 1)))
    assert len(passes) == 4
    assert all((targets >= 0).any() for _, targets, _ in passes)
    assert sum(weight for _, _, weight in passes) == pytest.approx(1)


def test_the_loss_is_that_of_the_stock_model(village, packed):
    config = tiny.settings()
    start = load_start(village.anchor, config)
    model = copies(village.anchor, 3, 2)
    job = mixture_job(model, packed, config, start, "joint")
    (found,) = [loss.detach() for loss in job.losses(0)]
    tokens, targets = UnionBatches([train for train, _ in packed], 4, config.seed).step(0)
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(tokens[:, :-1].copy()),
            # Already shifted, and so the library must not do it again.
            shift_labels=torch.from_numpy(targets),
            labels=torch.from_numpy(targets),
            output_router_logits=True,
        )
    torch.testing.assert_close(found, output.loss, rtol=1e-4, atol=1e-4)
    assert float(output.aux_loss) > 1.5, "three experts, two of them chosen: about two"


def gradients(village, packed, *way):
    config = tiny.settings(*way)
    model = copies(village.anchor, 3, 2)
    job = mixture_job(model, packed, config, load_start(village.anchor, config), "joint")
    for loss in job.losses(0):
        loss.backward()
    return {name: parameter.grad for name, parameter in job.parameters.items()}


def test_recomputed_activations_give_the_same_gradients_the_balance_s_too(village, packed):
    plain = gradients(village, packed)
    again = gradients(village, packed, "compute.checkpoint_activations=true")
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("top_k", [1, 2])
def test_everything_is_trained_the_router_too(village, tmp_path, top_k):
    made = train_joint(
        village.anchor,
        village.texts,
        village.heldout,
        tmp_path / "joint",
        top_k=top_k,
        config=tiny.settings(),
        quiet=True,
    )
    model = load_joint(made.folder)
    assert model.config.num_experts == 3
    assert model.config.num_experts_per_tok == top_k
    before, after = copies(village.anchor, 3, top_k).state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    # With one expert of each token, the language-model loss reaches the router through its weight,
    # of which the norm leaves nothing; the balance does the rest.
    assert not any(torch.equal(before[name], after[name]) for name in before)
    stock = FlexOlmoForCausalLM.from_pretrained(made.folder, dtype=torch.float32)
    tokens = tiny.random_tokens(2, 20)
    assert torch.equal(logits(model, tokens), logits(stock, tokens))


def test_experts_and_router_alone_leave_the_rest_as_it_was(village, tmp_path):
    made = train_joint(
        village.anchor,
        village.texts,
        village.heldout,
        tmp_path / "joint",
        top_k=2,
        config=tiny.settings(),
        part="experts",
        quiet=True,
    )
    before, after = copies(village.anchor, 3, 2).state_dict(), load_joint(made.folder).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".mlp." in name}


def test_training_together_helps_every_text(village, packed, tmp_path):
    made = train_joint(
        village.anchor,
        village.texts,
        village.heldout,
        tmp_path / "joint",
        top_k=2,
        config=tiny.settings("budget.tokens=6400", "optim.learning_rate=1e-2"),
        quiet=True,
    )
    anchor, model = load_dense(village.anchor), load_joint(made.folder)
    for _, heldout in packed:
        bits = [judge_backbone(each, heldout, 2000).bits_per_byte for each in (anchor, model)]
        assert bits[1] < bits[0] - 0.5


@pytest.fixture(scope="module")
def dense(village, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    return [
        continue_dense(
            village.anchor,
            village.texts[name],
            village.heldout[name],
            folder / name,
            part="whole",
            config=tiny.settings(),
            quiet=True,
        ).folder
        for name in ("amy", "bob")
    ]


def test_btx_of_copies_of_the_anchor_is_the_anchor(tiny_anchor):
    backbone = load_dense(tiny_anchor, dtype=torch.float32)
    states = [load_dense(tiny_anchor, dtype=torch.float32).state_dict() for _ in range(3)]
    model = _mixture(backbone, _mean(states), states, 2, 0)
    tokens = tiny.random_tokens(3, 30)
    torch.testing.assert_close(
        logits(model, tokens), logits(backbone, tokens), rtol=1e-3, atol=1e-3
    )


def test_btx_has_everybodys_block_and_the_mean_of_everything_else(
    village, dense, tmp_path, monkeypatch
):
    # The whole way through the files, with steps too small to move anything.
    config = tiny.settings("optim.learning_rate=1e-30")
    public = village.texts["public"], village.heldout["public"]
    made = train_btx(
        village.anchor, dense, *public, tmp_path / "btx", top_k=2, config=config, quiet=True
    )
    found = load_file(made.folder / "model.safetensors")
    held = [load_file(folder / "model.safetensors") for folder in (village.anchor, *dense)]
    for layer in range(tiny.LAYERS):
        for slot, state in enumerate(held):
            for name in ("gate_proj", "up_proj", "down_proj"):
                into = f"model.layers.{layer}.mlp.experts.{slot}.{name}.weight"
                assert torch.equal(found[into], state[f"model.layers.{layer}.mlp.{name}.weight"])
    for name in held[0]:
        if ".mlp." not in name:
            expected = (held[0][name] + held[1][name] + held[2][name]) / 3
            torch.testing.assert_close(found[name], expected)


def test_btx_is_trained_on_public_text_and_remembers_its_models(village, dense, tmp_path):
    public = village.texts["public"], village.heldout["public"]
    config = tiny.settings()
    how = {"top_k": 2, "config": config, "quiet": True}
    made = train_btx(village.anchor, dense, *public, tmp_path / "btx", **how)
    assert made.tokens_seen == 1536
    assert train_btx(village.anchor, dense, *public, tmp_path / "btx", **how) == made
    with pytest.raises(StateError, match="other text"):
        train_btx(village.anchor, dense[:1], *public, tmp_path / "btx", **how)


@pytest.mark.parametrize("top_k", [0, 4])
def test_more_experts_than_there_are_cannot_run(village, tmp_path, top_k):
    with pytest.raises(ConfigError, match="experts cannot run"):
        train_joint(
            village.anchor,
            village.texts,
            village.heldout,
            tmp_path / "out",
            top_k=top_k,
            config=tiny.settings(),
        )


def test_every_text_needs_held_out_text(village, tmp_path):
    heldout = {name: village.heldout[name] for name in ("amy", "public")}
    with pytest.raises(ConfigError, match="held-out"):
        train_joint(
            village.anchor,
            village.texts,
            heldout,
            tmp_path / "out",
            top_k=1,
            config=tiny.settings(),
        )


def test_packed_text_is_packed_once(village, tmp_path):
    how = (village.anchor, village.texts["amy"], village.heldout["amy"], tiny.settings())
    one, _ = prepare_text(*how, tmp_path / "text", Skipped())
    written = (tmp_path / "text" / "train" / "tokens.bin").stat().st_mtime_ns
    two, _ = prepare_text(*how, tmp_path / "text", Skipped())
    assert isinstance(two, PackedText)
    assert one.num_tokens == two.num_tokens
    assert (tmp_path / "text" / "train" / "tokens.bin").stat().st_mtime_ns == written

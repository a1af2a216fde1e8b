"""The paper's recipe: it begins as the anchor, changes what it may, and merges to what it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import makers, tiny
from tests.train.test_dense import interrupted_at

from moiety import family
from moiety.baselines import score
from moiety.errors import ConfigError
from moiety.model import load_dense
from moiety.train.anchor import dense_job
from moiety.train.baselines import continue_dense, merge_recipe, train_recipe
from moiety.train.compute import resolve_compute
from moiety.train.domains import Rows, domain_rows, random_rows
from moiety.train.loop import Loop
from moiety.train.recipe import TokenRouted, recipe_pair

WAYS = [("domain", True), ("domain", False), ("random", True)]


def logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


def train(village, out, owner="amy", *assignments, rows="domain", bias=True, **how):
    return train_recipe(
        village.anchor,
        village.texts[owner],
        village.heldout[owner],
        out,
        owner=owner,
        rows=rows,
        bias=bias,
        config=tiny.settings(*assignments),
        quiet=True,
        **how,
    )


@pytest.fixture(scope="module")
def owners(village, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    fast = "optim.learning_rate=1e-2"
    return {owner: train(village, folder / owner, owner, fast).folder for owner in ("amy", "bob")}


def some_rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(tiny.LAYERS, tiny.WIDTH)] * 2 + [(tiny.LAYERS,)]
    own, public, bias = (torch.randn(size, generator=generator) for size in sizes)
    return Rows(0.3 * own, 0.3 * public, bias)


def random_layer(blocks, top_k, biases, seed=0):
    """Random blocks and rows, and states to route."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator)

    linears = [torch.nn.Linear(6, 6, bias=False) for _ in range(blocks)]
    for linear in linears:
        linear.weight.data = draw(6, 6)
    rows = [draw(6) for _ in range(blocks)]
    layer = TokenRouted(linears, rows, [torch.tensor(bias) for bias in biases], top_k)
    return layer, linears, rows, draw(2, 9, 6)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9])
def test_a_layer_is_a_loop_over_tokens(top_k):
    biases = [-0.7, 0.4, -2.0]
    layer, linears, rows, hidden = random_layer(4, top_k, biases)
    found = layer(hidden).detach()
    for request in range(2):
        for at in range(9):
            state = hidden[request, at]
            wanted = [float(row @ state) for row in rows]
            for place, bias in enumerate(biases, start=1):
                wanted[place] += min(bias, 0.0)
            total = sum(math.exp(logit) for logit in wanted)
            weights = [math.exp(logit) / total for logit in wanted]
            kept = sorted(range(4), key=lambda place: -weights[place])[:top_k]
            expected = sum(weights[place] * linears[place](state) for place in kept)
            torch.testing.assert_close(found[request, at], expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_bias_above_zero_does_nothing_and_learns_nothing_and_at_zero_it_can():
    layer, *_, hidden = random_layer(2, 2, [3.0])
    other, *_ = random_layer(2, 2, [0.0])
    assert torch.equal(layer(hidden), other(hidden))
    moved = []
    for each in (layer, other):
        each(hidden).square().sum().backward()
        moved.append(float(each.biases[0].grad.abs()))
    assert moved[0] == 0 < moved[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pair_begins_as_the_anchor_whatever_its_rows(tiny_anchor, seed):
    tokens = tiny.random_tokens(3, 30)
    expected = logits(load_dense(tiny_anchor, dtype=torch.float32), tokens)
    pair = recipe_pair(load_dense(tiny_anchor, dtype=torch.float32), some_rows(seed), bias=True)
    torch.testing.assert_close(logits(pair, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "way", [(), ("optim.weight_decay=0.5",), ("batch.micro_windows=1", "compute.precision=bf16")]
)
def test_block_row_and_bias_change_and_nothing_else_by_a_bit(bench, tmp_path, bias, way):
    config, rows = tiny.settings(*way), some_rows()
    compute = resolve_compute(config.compute, 3)
    pair = recipe_pair(load_dense(bench.anchor, dtype=torch.float32), rows, bias=bias)
    with torch.no_grad():
        for layer in pair.model.layers:
            layer.mlp.biases[0].fill_(-0.5)
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    job = dense_job(pair, bench.texts.own, bench.texts.own_heldout, config, compute, 3)
    Loop(job, config, tmp_path, quiet=True).run(resume=False)
    after = pair.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    free = [".mlp.blocks.1.", ".mlp.rows.1", *([".mlp.biases.0"] if bias else [])]
    assert changed == {name for name in before if any(part in name for part in free)}
    on_disk = load_file(bench.anchor / "model.safetensors")
    for name, tensor in on_disk.items():
        assert torch.equal(after[name.replace(".mlp.", ".mlp.blocks.0.")], tensor)
    for number, layer in enumerate(pair.model.layers):
        assert torch.equal(layer.mlp.rows[0], rows.public_LD[number])


def pair_of(anchor, folder):
    """What was trained, put together again by hand."""
    pair = recipe_pair(load_dense(anchor, dtype=torch.float32), Rows.load(folder), bias=True)
    held = load_file(folder / "expert.safetensors")
    for number, layer in enumerate(pair.model.layers):
        for name in family.MATRICES:
            weight = layer.mlp.blocks[1].get_submodule(name).weight
            weight.data = held[family.weight(number, name)]
    return pair.eval()


@pytest.mark.parametrize(("rows", "bias"), WAYS)
def test_one_owner_merged_is_the_pair(village, tmp_path, rows, bias):
    folder = train(village, tmp_path / "amy", rows=rows, bias=bias).folder
    merged = merge_recipe(village.anchor, {"amy": folder}, top_k=2)
    tokens = tiny.random_tokens(3, 30)
    found, expected = logits(merged, tokens), logits(pair_of(village.anchor, folder), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    anchor = logits(load_dense(village.anchor, dtype=torch.float32), tokens)
    assert (found - anchor).abs().max() > 0.05, "it has learned something"
    if not bias:
        assert Rows.load(folder).bias_L.tolist() == [0.0] * tiny.LAYERS


def test_merged_owners_stand_in_the_order_of_their_names(village, owners):
    tokens = tiny.random_tokens(2, 20)
    one = merge_recipe(village.anchor, owners, top_k=2)
    two = merge_recipe(village.anchor, dict(reversed(owners.items())), top_k=2)
    assert torch.equal(logits(one, tokens), logits(two, tokens))
    layer = one.model.layers[1].mlp
    for place, owner in enumerate(sorted(owners), start=1):
        held = load_file(owners[owner] / "expert.safetensors")
        block = layer.blocks[place].up_proj.weight
        assert torch.equal(block, held[family.weight(1, "up_proj")])
        assert torch.equal(layer.rows[place], Rows.load(owners[owner]).own_LD[1])
    assert score(one, tokens.numpy()).shape == (2, 19)


def test_the_merged_model_serves_both_owners_texts_better_than_the_anchor(village, owners, bench):
    anchor = load_dense(village.anchor, dtype=torch.float32)
    merged = merge_recipe(village.anchor, owners, top_k=3)
    windows = bench.texts.own_heldout.windows([0, 1, 2])
    counted = windows.counted
    assert score(merged, windows)[counted].mean() < score(anchor, windows)[counted].mean() - 0.1


def test_experts_that_never_met_the_anchor_in_training_can_be_merged(village, tmp_path):
    made = {
        owner: continue_dense(
            village.anchor,
            village.texts[owner],
            village.heldout[owner],
            tmp_path / owner,
            part="feed-forward",
            config=tiny.settings(),
            quiet=True,
        ).folder
        for owner in ("amy", "bob")
    }
    merged = merge_recipe(village.anchor, made, top_k=1)
    for place, owner in enumerate(("amy", "bob"), start=1):
        held = load_file(made[owner] / "model.safetensors")
        for number, layer in enumerate(merged.model.layers):
            dense = held[family.OLMO2.dense(number, "down_proj")]
            assert torch.equal(layer.mlp.blocks[place].down_proj.weight, dense)
    rows = [Rows.load(folder) for folder in made.values()]
    assert torch.equal(rows[0].public_LD, rows[1].public_LD)
    assert not torch.equal(rows[0].own_LD, rows[1].own_LD)
    assert merged.model.layers[0].mlp.top_k == 1


def test_the_recipe_and_the_dense_model_begin_with_the_same_rows(village, tmp_path):
    still = tiny.settings("optim.learning_rate=1e-30")
    how = village.anchor, village.texts["amy"], village.heldout["amy"]
    dense = continue_dense(
        *how, tmp_path / "dense", part="feed-forward", config=still, quiet=True
    ).folder
    pair = train(village, tmp_path / "pair", "amy", "optim.learning_rate=1e-30").folder
    for name in ("own_LD", "public_LD"):
        torch.testing.assert_close(getattr(Rows.load(dense), name), getattr(Rows.load(pair), name))


def test_domain_rows_are_the_mean_of_documents_states(bench):
    anchor = load_dense(bench.anchor, dtype=torch.float32)
    text = bench.texts.own
    states = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _m, inputs: states.append(inputs[0]))
        for layer in anchor.model.layers
    ]
    sums = np.zeros((tiny.LAYERS, tiny.WIDTH))
    parts = 0
    for number in range(text.num_windows):
        window = text.windows([number])
        states.clear()
        with torch.no_grad():
            anchor(input_ids=torch.from_numpy(window.tokens[:, :-1].copy()), use_cache=False)
        documents = window.documents[0, :-1]
        for document in sorted(set(documents[8:].tolist()) - {-1}):
            places = [at for at in range(8, len(documents)) if documents[at] == document]
            parts += 1
            for layer, hidden in enumerate(states):
                mean = hidden[0, places].mean(dim=0).numpy()
                sums[layer] += mean / np.linalg.norm(mean)
    for hook in hooks:
        hook.remove()
    assert parts > text.num_windows, "a document must begin inside a window to say anything"
    np.testing.assert_allclose(domain_rows(anchor, text).numpy(), sums / parts, atol=1e-5)


def test_random_rows_are_an_owners_own_and_the_public_row_is_everybodys(village, tmp_path):
    anchor = load_dense(village.anchor)
    one, same, other = (
        random_rows(anchor, name=name, seed=seed)
        for name, seed in (("amy", 0), ("amy", 0), ("bob", 0))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, random_rows(anchor, name="amy", seed=1))
    assert float(other.std()) == pytest.approx(anchor.config.initializer_range, rel=0.3)
    settled = "optim.learning_rate=1e-30"
    rows = {
        owner: Rows.load(
            train(village, tmp_path / owner, owner, settled, f"seed={seed}", rows="random").folder
        )
        for seed, owner in enumerate(("amy", "bob"))
    }
    assert torch.equal(rows["amy"].public_LD, rows["bob"].public_LD)
    torch.testing.assert_close(rows["amy"].own_LD, one)


def test_experts_of_other_anchors_or_other_public_rows_are_refused(village, owners, tmp_path):
    stranger = train(village, tmp_path / "bob", "bob", rows="random").folder
    with pytest.raises(ConfigError, match="another public row"):
        merge_recipe(village.anchor, {"amy": owners["amy"], "bob": stranger}, top_k=2)
    (tmp_path / "far").mkdir()
    far = makers.make_anchor(tmp_path / "far" / "anchor", width=8)
    with pytest.raises(ConfigError, match="another anchor"):
        merge_recipe(far, {"amy": owners["amy"]}, top_k=2)


@pytest.mark.parametrize("rows", ["domain", "random"])
def test_stopped_and_resumed_it_is_the_same(village, tmp_path, monkeypatch, rows):
    one = train(village, tmp_path / "one", rows=rows).folder
    with monkeypatch.context() as patch:
        interrupted_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(village, tmp_path / "two", rows=rows)
    two = train(village, tmp_path / "two", rows=rows, resume=True).folder
    for name in ("expert.safetensors", "rows.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()

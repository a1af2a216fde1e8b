"""The anchored pair: it begins as the anchor, and its rows are judged as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from tests import tiny

from moiety import family
from moiety.model import load_dense

WAYS = ["pair.rank=none", "pair.rank=3"]


def logits(backbone, tokens):
    with torch.inference_mode():
        return backbone(input_ids=tokens, use_cache=False).logits


def random_pair(bench, *way):
    """A pair of which everything that is shipped is random, what is added to its rows too."""
    pair = bench.pair(tiny.settings(*way))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(pair.trainable().items()):
            parameter.normal_(std=0.2, generator=generator)
    for layer in pair.layers:
        sizes = tiny.WIDTH + 1, tiny.WIDTH
        layer.add_rows(*(0.2 * torch.randn(size, generator=generator) for size in sizes))
    return pair


@pytest.mark.parametrize("way", WAYS)
def test_an_untrained_pair_is_the_anchor(bench, way):
    tokens = tiny.random_tokens(3, 30)
    expected = logits(load_dense(bench.anchor, dtype=torch.float32), tokens)
    pair = bench.pair(tiny.settings(way))
    assert torch.equal(logits(pair.backbone, tokens), expected)
    with torch.no_grad():
        for layer in pair.layers:
            layer.context_row.normal_()
    torch.testing.assert_close(logits(pair.backbone, tokens), expected)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_shipped_has_the_names_and_shapes_of_a_bundle(bench, way):
    config = tiny.settings(way)
    shipped = bench.pair(config).expert_tensors()
    shapes = family.expert_shapes(tiny.LAYERS, tiny.WIDTH, tiny.HIDDEN, config.pair.rank)
    assert {name: tuple(tensor.shape) for name, tensor in shipped.items()} == shapes
    assert {tensor.dtype for tensor in shipped.values()} == {torch.float32}


@pytest.mark.parametrize("way", WAYS)
def test_only_what_is_shipped_is_trainable(bench, way):
    pair = bench.pair(tiny.settings(way))
    shipped = sum(tensor.numel() for tensor in pair.expert_tensors().values())
    assert sum(parameter.numel() for parameter in pair.trainable().values()) == shipped


@pytest.mark.parametrize("way", WAYS)
def test_the_pair_is_the_release_of_its_expert_alone(bench, tmp_path, way):
    from moiety.merge import load_release, merge

    pair = random_pair(bench, way)
    arrays = {name: tensor.numpy() for name, tensor in pair.expert_tensors().items()}
    bundle = tiny.make_bundle(tmp_path, bench.anchor, "amy", arrays)
    merge(bench.anchor, [bundle], tmp_path / "release")
    mixture = load_release(tmp_path / "release")
    tokens = tiny.random_tokens(2, 20)
    torch.testing.assert_close(
        tiny.logits_of(mixture, tokens), logits(pair.backbone, tokens), rtol=1e-4, atol=1e-4
    )
    documents = torch.tensor([[0] * 7 + [1] * 13, [2] * 20])
    pair.expect(documents[:, :-1])
    expected = logits(pair.backbone, tokens[:, :-1]).log_softmax(-1)
    nats = -expected.gather(2, tokens[:, 1:, None])[:, :, 0]
    torch.testing.assert_close(mixture.score(tokens, documents), nats, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_windows_routed_by_the_token_rows_are_what_a_release_computes_by_them(bench, tmp_path, way):
    from moiety.merge import load_release, merge

    pair, tokens = random_pair(bench, way), tiny.random_tokens(2, 20)
    arrays = {name: tensor.numpy() for name, tensor in pair.expert_tensors().items()}
    bundle = tiny.make_bundle(tmp_path, bench.anchor, "amy", arrays)
    merge(bench.anchor, [bundle], tmp_path / "release")
    mixture = load_release(tmp_path / "release")
    by_context = tiny.logits_of(mixture, tokens)
    mixture.routing.mode = "token"
    by_token = tiny.logits_of(mixture, tokens)
    assert (by_token - by_context).abs().max() > 0.05
    pair.expect(torch.zeros(2, 20), torch.tensor([False, True]))
    expected = torch.stack([by_context[0], by_token[1]])
    torch.testing.assert_close(logits(pair.backbone, tokens), expected, rtol=1e-4, atol=1e-4)


def test_the_rows_loss_is_binary_cross_entropy_counted_by_hand(bench):
    pair = random_pair(bench)
    tokens = tiny.random_tokens(3, 6)
    documents = torch.tensor([[0] * 2 + [1] * 4, [0] * 6, [5] * 5 + [-1]])
    own = torch.tensor([1.0, 1.0, 0.0])
    balance = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    pair.expect(documents)
    states = []
    hooks = [
        layer.register_forward_pre_hook(lambda _m, inputs: states.append(inputs[0].detach()))
        for layer in pair.layers
    ]
    with torch.no_grad():
        pair.backbone(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    total = 0.0
    pair.backbone.requires_grad_(False)
    shipped = pair.expert_tensors()
    for number, hidden in enumerate(states):
        for request in range(3):
            for at in range(6):
                begin = at
                while begin and documents[request, begin - 1] == documents[request, at]:
                    begin -= 1
                token = float(hidden[request, at] @ shipped[family.token_row(number)])
                *row, bias = shipped[family.context_row(number)].tolist()
                mean = hidden[request, begin : at + 1].mean(dim=0)
                context = float(mean @ torch.tensor(row)) + bias
                for logit in (token, context):
                    chance = 1 / (1 + math.exp(-logit))
                    likelihood = chance if own[request] == 1 else 1 - chance
                    total -= float(balance[request, at]) * math.log(likelihood)
    expected = total / (2 * len(pair.layers))
    assert float(pair.row_loss(own, balance)) == pytest.approx(expected, rel=1e-4)


def test_alone_the_anchor_runs_and_the_rows_read_its_states(bench):
    tokens = tiny.random_tokens(2, 12)
    pair, dense = random_pair(bench), load_dense(bench.anchor, dtype=torch.float32)
    states = []
    for layer in dense.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _m, inputs: states.append(inputs[0]))
    expected = logits(dense, tokens)
    with pair.alone():
        assert torch.equal(logits(pair.backbone, tokens), expected)
    shipped, places = pair.expert_tensors(), torch.arange(1, 13)
    for number, (layer, hidden) in enumerate(zip(pair.layers, states, strict=True)):
        row = shipped[family.context_row(number)]
        mean = (hidden @ row[:-1]).cumsum(dim=1) / places + row[-1]
        torch.testing.assert_close(layer.context_BT, mean, rtol=1e-4, atol=1e-4)
        token = hidden @ shipped[family.token_row(number)]
        torch.testing.assert_close(layer.token_BT, token, rtol=1e-4, atol=1e-4)
    assert (logits(pair.backbone, tokens) - expected).abs().max() > 0.05


def test_what_is_added_to_the_rows_adds_to_their_answers(bench):
    pair, tokens = random_pair(bench), tiny.random_tokens(2, 12)
    layer = pair.layers[0]  # the states of the others depend on its answer
    row, bias = torch.randn(tiny.WIDTH), 0.7
    states = []
    layer.register_forward_pre_hook(lambda _m, inputs: states.append(inputs[0]))
    logits(pair.backbone, tokens)
    before = layer.context_BT.clone(), layer.token_BT.clone()
    layer.add_rows(torch.cat([row, torch.tensor([bias])]), row)
    logits(pair.backbone, tokens)
    more = states[0] @ row
    mean = more.cumsum(dim=1) / torch.arange(1, 13) + bias
    torch.testing.assert_close(layer.token_BT, before[1] + more, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.context_BT, before[0] + mean, rtol=1e-4, atol=1e-4)


def test_the_rows_own_loss_trains_rows_and_nothing_else(bench):
    pair = random_pair(bench)
    pair.backbone(input_ids=tiny.random_tokens(2, 8), use_cache=False)
    pair.row_loss(torch.tensor([1.0, 0.0]), torch.full((2, 8), 1 / 16)).backward()
    moved = {name for name, p in pair.trainable().items() if p.grad is not None}
    assert moved == {name for name in pair.trainable() if name.endswith("_row")}


def test_the_language_models_loss_trains_the_context_row_but_not_the_token_row(bench):
    pair = random_pair(bench)
    pair.backbone(input_ids=tiny.random_tokens(2, 8), use_cache=False).logits.sum().backward()
    still = {name for name, p in pair.trainable().items() if p.grad is None}
    assert still == {name for name in pair.trainable() if name.endswith("token_row")}


def test_where_the_token_rows_route_the_language_models_loss_trains_them(bench):
    pair = random_pair(bench)
    pair.expect(torch.zeros(2, 8), torch.tensor([True, True]))
    pair.backbone(input_ids=tiny.random_tokens(2, 8), use_cache=False).logits.sum().backward()
    moved = {name for name, p in pair.trainable().items() if p.grad.abs().max() > 0}
    assert moved == {name for name in pair.trainable() if not name.endswith("context_row")}


def test_the_seed_decides_where_a_low_rank_expert_begins(bench):
    one, same, other = (
        bench.pair(tiny.settings("pair.rank=2", f"seed={seed}")).expert_tensors()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    different = {name.rsplit(".", 1)[1] for name in one if not torch.equal(one[name], other[name])}
    assert different == {"delta_in"}

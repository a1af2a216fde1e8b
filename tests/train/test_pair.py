"""The anchored pair: it begins as the anchor, and what chooses is judged as it should be."""

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


def pair_logits(pair, tokens, documents=None, **how):
    """The pair's logits; where nothing is said of documents a window is one."""
    pair.expect(tokens, torch.zeros_like(tokens) if documents is None else documents, **how)
    return logits(pair.backbone, tokens)


def expert_release(bench, folder, pair):
    """The release of the pair's expert alone, as a mixture."""
    from moiety.merge import load_release, merge

    arrays = {name: tensor.numpy() for name, tensor in pair.expert_tensors().items()}
    bundle = tiny.make_bundle(folder, bench.anchor, "amy", arrays)
    merge(bench.anchor, [bundle], folder / "release")
    return load_release(folder / "release")


def random_pair(bench, *way):
    """A pair of which everything that is trained is random, what is added to its rows too."""
    pair = bench.pair(tiny.settings(*way))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(pair.trainable().items()):
            parameter.normal_(std=0.2, generator=generator)
    for layer in pair.layers:
        layer.add_row(0.2 * torch.randn(tiny.WIDTH, generator=generator))
    return pair


@pytest.mark.parametrize("way", WAYS)
def test_an_untrained_pair_is_the_anchor(bench, way):
    tokens = tiny.random_tokens(3, 30)
    expected = logits(load_dense(bench.anchor, dtype=torch.float32), tokens)
    pair = bench.pair(tiny.settings(way))
    assert torch.equal(pair_logits(pair, tokens), expected)
    with torch.no_grad():
        for layer in pair.layers:
            layer.token_row.normal_()
    pair.table_V = torch.randn(tiny.VOCAB)
    by_token = torch.tensor([True, False, True])
    torch.testing.assert_close(pair_logits(pair, tokens, by_token_B=by_token), expected)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_shipped_has_the_names_and_shapes_of_a_bundle(bench, way):
    config = tiny.settings(way)
    shipped = bench.pair(config).expert_tensors()
    shapes = family.expert_shapes(
        tiny.LAYERS, tiny.WIDTH, tiny.HIDDEN, tiny.VOCAB, config.pair.rank
    )
    assert {name: tuple(tensor.shape) for name, tensor in shipped.items()} == shapes
    assert {tensor.dtype for tensor in shipped.values()} == {torch.float32}


@pytest.mark.parametrize("way", WAYS)
def test_only_what_is_shipped_is_trainable_and_the_table_is_not(bench, way):
    pair = bench.pair(tiny.settings(way))
    shipped = pair.expert_tensors()
    assert torch.equal(shipped.pop(family.EVIDENCE), pair.table_V)
    count = sum(tensor.numel() for tensor in shipped.values())
    assert sum(parameter.numel() for parameter in pair.trainable().values()) == count


@pytest.mark.parametrize("way", WAYS)
def test_the_pair_is_the_release_of_its_expert_alone(bench, tmp_path, way):
    pair, tokens = random_pair(bench, way), tiny.random_tokens(2, 20)
    mixture = expert_release(bench, tmp_path, pair)
    found = pair_logits(pair, tokens)
    torch.testing.assert_close(tiny.logits_of(mixture, tokens), found, rtol=1e-4, atol=1e-4)
    documents = torch.tensor([[0] * 7 + [1] * 13, [2] * 20])
    expected = pair_logits(pair, tokens[:, :-1], documents[:, :-1]).log_softmax(-1)
    nats = -expected.gather(2, tokens[:, 1:, None])[:, :, 0]
    torch.testing.assert_close(mixture.score(tokens, documents), nats, rtol=1e-4, atol=1e-4)
    assert (expected - found[:, :-1].log_softmax(-1))[0].abs().max() > 0.01, "borders must matter"


def by_evidence_and_by_token(mixture, tokens):
    """A release's logits: by evidence for the first window, by its token rows for the other."""
    by_evidence = tiny.logits_of(mixture, tokens)
    mixture.routing.mode = "token"
    by_token = tiny.logits_of(mixture, tokens)
    assert (by_token - by_evidence).abs().max() > 0.05
    return torch.stack([by_evidence[0], by_token[1]])


@pytest.mark.parametrize("way", WAYS)
def test_windows_routed_by_the_token_rows_are_what_a_release_computes_by_them(bench, tmp_path, way):
    pair, tokens = random_pair(bench, way), tiny.random_tokens(2, 20)
    expected = by_evidence_and_by_token(expert_release(bench, tmp_path, pair), tokens)
    found = pair_logits(pair, tokens, by_token_B=torch.tensor([False, True]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def states_before(layers, run):
    """The states that enter each of these modules while ``run`` runs."""
    states, hooks = [], []
    for layer in layers:
        keep = layer.register_forward_pre_hook(lambda _m, inputs: states.append(inputs[0].detach()))
        hooks.append(keep)
    run()
    for hook in hooks:
        hook.remove()
    return states


def test_the_rows_loss_is_binary_cross_entropy_counted_by_hand(bench):
    pair = random_pair(bench)
    tokens = tiny.random_tokens(3, 6)
    own = torch.tensor([1.0, 1.0, 0.0])
    balance = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    by_token = torch.tensor([True, False, False])
    states = states_before(pair.layers, lambda: pair_logits(pair, tokens, by_token_B=by_token))
    total = 0.0
    shipped = pair.expert_tensors()
    for number, hidden in enumerate(states):
        for request in range(3):
            for at in range(6):
                logit = float(hidden[request, at] @ shipped[family.token_row(number)])
                chance = 1 / (1 + math.exp(-logit))
                likelihood = chance if own[request] == 1 else 1 - chance
                total -= float(balance[request, at]) * math.log(likelihood)
    expected = total / len(pair.layers)
    assert float(pair.row_loss(own, balance)) == pytest.approx(expected, rel=1e-4)


def test_alone_the_anchor_runs_and_the_rows_read_its_states(bench):
    tokens = tiny.random_tokens(2, 12)
    pair, dense = random_pair(bench), load_dense(bench.anchor, dtype=torch.float32)
    blocks = [layer.mlp for layer in dense.model.layers]
    states = states_before(blocks, lambda: logits(dense, tokens))
    expected = logits(dense, tokens)
    with pair.alone():
        assert torch.equal(pair_logits(pair, tokens), expected)
    shipped = pair.expert_tensors()
    for number, (layer, hidden) in enumerate(zip(pair.layers, states, strict=True)):
        token = hidden @ shipped[family.token_row(number)]
        torch.testing.assert_close(layer.token_BT, token, rtol=1e-4, atol=1e-4)
    assert (pair_logits(pair, tokens) - expected).abs().max() > 0.05


def test_what_is_added_to_a_row_adds_to_its_answers(bench):
    pair, tokens = random_pair(bench), tiny.random_tokens(2, 12)
    layer = pair.layers[0]  # the states of the others depend on its answer
    row = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    (states,) = states_before([layer], lambda: pair_logits(pair, tokens))
    before = layer.token_BT.clone()
    layer.add_row(row)
    pair_logits(pair, tokens)
    torch.testing.assert_close(layer.token_BT, before + states @ row, rtol=1e-4, atol=1e-4)


def loss_of_the_model(pair, *, by_token):
    """Any loss of what the model says of two windows, which one kind of router routes."""
    tokens = tiny.random_tokens(2, 8)
    pair.expect(tokens, torch.zeros_like(tokens), torch.full((2,), by_token))
    return pair.backbone(input_ids=tokens, use_cache=False).logits.sum()


def test_the_rows_own_loss_trains_rows_and_nothing_else(bench):
    pair = random_pair(bench)
    loss_of_the_model(pair, by_token=True)
    pair.row_loss(torch.tensor([1.0, 0.0]), torch.full((2, 8), 1 / 16)).backward()
    moved = {name for name, p in pair.trainable().items() if p.grad is not None}
    assert moved == {name for name in pair.trainable() if name.endswith("token_row")}


def test_where_evidence_routes_the_language_models_loss_does_not_train_the_rows(bench):
    pair = random_pair(bench)
    loss_of_the_model(pair, by_token=False).backward()
    moved = {name for name, p in pair.trainable().items() if p.grad is not None and p.grad.any()}
    assert moved == {name for name in pair.trainable() if not name.endswith("token_row")}


def test_where_the_token_rows_route_the_language_models_loss_trains_them(bench):
    pair = random_pair(bench)
    loss_of_the_model(pair, by_token=True).backward()
    assert all(p.grad.abs().max() > 0 for p in pair.trainable().values())


def test_the_seed_decides_where_a_low_rank_expert_begins(bench):
    one, same, other = (
        bench.pair(tiny.settings("pair.rank=2", f"seed={seed}")).expert_tensors()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    different = {name.rsplit(".", 1)[1] for name in one if not torch.equal(one[name], other[name])}
    assert different == {"delta_in"}

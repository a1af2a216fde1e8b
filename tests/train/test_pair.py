"""The anchored pair: it begins as the anchor, and evidence counted by hand chooses."""

from __future__ import annotations

import math

import pytest
import torch
from tests import tiny
from torch.nn import functional

from moiety import family
from moiety.model import load_dense

WAYS = ["pair.rank=none", "pair.rank=3"]


def logits(backbone, tokens):
    with torch.inference_mode():
        return backbone(input_ids=tokens, use_cache=False).logits


def pair_logits(pair, tokens, documents=None):
    """The pair's logits; where nothing is said of documents a window is one."""
    pair.expect(tokens, torch.zeros_like(tokens) if documents is None else documents)
    return logits(pair.backbone, tokens)


def expert_release(bench, folder, pair):
    """The release of the pair's expert alone, as a mixture."""
    from moiety.merge import load_release, merge

    arrays = {name: tensor.numpy() for name, tensor in pair.expert_tensors().items()}
    bundle = tiny.make_bundle(folder, bench.anchor, "amy", arrays)
    merge(bench.anchor, [bundle], folder / "release")
    return load_release(folder / "release")


def random_pair(bench, *way):
    """A pair of which everything that is trained is random."""
    pair = bench.pair(tiny.settings(*way))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in sorted(pair.trainable().items()):
            parameter.normal_(std=0.2, generator=generator)
    return pair


@pytest.mark.parametrize("way", WAYS)
def test_an_untrained_pair_is_the_anchor(bench, way):
    tokens = tiny.random_tokens(3, 30)
    expected = logits(load_dense(bench.anchor, dtype=torch.float32), tokens)
    pair = bench.pair(tiny.settings(way))
    assert torch.equal(pair_logits(pair, tokens), expected)
    pair.table_V = torch.randn(tiny.VOCAB)
    assert torch.equal(pair_logits(pair, tokens), expected)


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


def share_by_hand(table, tokens):
    """What the last of a document's tokens gives the owner's block."""
    evidence = sum(float(table[token]) for token in tokens) * 16 / (len(tokens) + 16)
    return 1 / (1 + math.exp(-evidence))


def test_the_owners_share_is_the_evidence_counted_by_hand(bench):
    pair, tokens = bench.pair(tiny.settings()), tiny.random_tokens(3, 20)
    pair.table_V = 2 * torch.randn(tiny.VOCAB, generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 7 + [1] * 13, [2] * 20, [7] + [3] * 14 + [-1] * 5])
    pair.expect(tokens, documents)
    share = pair.routing.share_BT1
    assert share.shape == (3, 20, 1)
    for window, inside in enumerate(documents.tolist()):
        for at, document in enumerate(inside):
            if document >= 0:
                seen = tokens[window, inside.index(document) : at + 1]
                expected = share_by_hand(pair.table_V, seen)
                assert float(share[window, at, 0]) == pytest.approx(expected, rel=1e-4)
    assert share.min() < 0.1, "a table that says little would prove little"
    assert share.max() > 0.9


def test_in_an_even_window_both_blocks_weigh_the_same(bench):
    pair, tokens = bench.pair(tiny.settings()), tiny.random_tokens(3, 20)
    pair.table_V = torch.randn(tiny.VOCAB, generator=torch.Generator().manual_seed(0))
    documents = torch.zeros_like(tokens)
    pair.expect(tokens, documents)
    by_evidence = pair.routing.share_BT1
    pair.expect(tokens, documents, torch.tensor([False, True, False]))
    share = pair.routing.share_BT1
    assert torch.equal(share[1], torch.full((20, 1), 0.5))
    assert torch.equal(share[[0, 2]], by_evidence[[0, 2]])
    assert not torch.equal(share[1], by_evidence[1])


def block(hidden, gate, up, down):
    return (functional.silu(hidden @ gate.T) * (hidden @ up.T)) @ down.T


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_mixes_both_blocks_by_that_share(bench, way):
    pair, tokens = random_pair(bench, way), tiny.random_tokens(2, 9)
    pair_logits(pair, tokens)
    hidden = torch.randn(2, 9, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    shipped = pair.expert_tensors()
    for number, layer in enumerate(pair.layers):
        anchor = [getattr(layer.anchor, name).weight for name in family.MATRICES]
        own = [
            shipped[family.weight(number, name)]
            if way == WAYS[0]
            else base
            + shipped[family.delta_out(number, name)] @ shipped[family.delta_in(number, name)]
            for name, base in zip(family.MATRICES, anchor, strict=True)
        ]
        share = pair.routing.share_BT1
        expected = (1 - share) * block(hidden, *anchor) + share * block(hidden, *own)
        torch.testing.assert_close(layer(hidden), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_language_models_loss_trains_all_that_is_trainable(bench, way):
    pair, tokens = random_pair(bench, way), tiny.random_tokens(2, 8)
    pair.expect(tokens, torch.zeros_like(tokens))
    pair.backbone(input_ids=tokens, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in pair.trainable().values())


def test_the_seed_decides_where_a_low_rank_expert_begins(bench):
    one, same, other = (
        bench.pair(tiny.settings("pair.rank=2", f"seed={seed}")).expert_tensors()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    different = {name.rsplit(".", 1)[1] for name in one if not torch.equal(one[name], other[name])}
    assert different == {"delta_in"}

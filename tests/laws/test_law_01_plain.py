"""Law 1: our mixture is the stock one, on the plain checkpoint that a release is exported to."""

from __future__ import annotations

import json

import pytest
import torch
from tests import tiny
from tests.laws.naive import naive_logits
from transformers import AutoModelForCausalLM, AutoTokenizer, FlexOlmoForCausalLM

from moiety.merge import exporting, load_release

OWNERS = tuple(tiny.RANKS)
TOP_KS = [1, 2, None]
TOLERANCE = {"rtol": 5e-5, "atol": 5e-5}
LENGTH = 60
"""With heads of 8 numbers the rotary frequencies are fast: further on, evidence is off by 1e-4."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Exports a release of a world and loads it with stock software."""
    made = {}

    def load(world, *owners, top_k=None, experts=None, dtype=torch.float32):
        key = (world.folder, owners, top_k, experts)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("plain") / "plain"
            release = world.release(*owners, top_k=top_k)
            exporting.export_plain(release, made[key], experts=experts)
        stock, report = AutoModelForCausalLM.from_pretrained(
            made[key], output_loading_info=True, dtype=dtype
        )
        assert type(stock) is FlexOlmoForCausalLM
        assert {name: list(found) for name, found in report.items() if found} == {}
        return stock.eval()

    return load


def world_of(tmp_path_factory, *, ranks=tiny.RANKS, **shape):
    return tiny.make_world(tmp_path_factory.mktemp("world"), ranks, **shape)


@pytest.fixture(scope="module")
def long_world(tmp_path_factory):
    """Grouped queries, heads of 16 numbers, 512 positions."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return world_of(tmp_path_factory, max_position_embeddings=512, **heads)


@pytest.fixture(scope="module")
def crowded_world(tmp_path_factory):
    """More owners than one head of values has room for, under grouped queries."""
    ranks = {f"owner-{n}": 2 for n in range(9)}
    return world_of(tmp_path_factory, ranks=ranks, num_key_value_heads=2)


@pytest.fixture(scope="module")
def tied_world(tmp_path_factory):
    return world_of(tmp_path_factory, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def half_world(tmp_path_factory):
    return world_of(tmp_path_factory, dtype=torch.bfloat16)


def texts(batch, length, seed=0):
    """Random tokens behind the separator."""
    tokens = tiny.random_tokens(batch, length, seed)
    tokens[:, 0] = 0
    return tokens


def stock_logits(stock, tokens, **how):
    with torch.inference_mode():
        return stock(input_ids=tokens, use_cache=False, **how).logits


def largest_difference(stock, ours, tokens):
    return (stock_logits(stock, tokens) - tiny.logits_of(ours, tokens)).abs().max()


@pytest.mark.parametrize("top_k", TOP_KS)
def test_stock_software_computes_what_ours_does(tiny_world, plain, top_k):
    tokens = texts(3, LENGTH)
    ours = tiny_world.load(*OWNERS, top_k=top_k)
    found = stock_logits(plain(tiny_world, *OWNERS, top_k=top_k), tokens)
    torch.testing.assert_close(found, tiny.logits_of(ours, tokens), **TOLERANCE)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_stock_software_computes_what_a_loop_over_positions_does(tiny_world, plain, top_k):
    tokens = texts(2, 13)
    expected = naive_logits(tiny_world, tokens, [[0] * 13] * 2, top_k)
    found = stock_logits(plain(tiny_world, *OWNERS, top_k=top_k), tokens)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("world", ["tiny_world", "crowded_world", "tied_world", "long_world"])
def test_every_gate_reads_the_sum_that_the_formula_says(world, plain, request):
    world = request.getfixturevalue(world)
    owners = sorted(world.bundles)
    stock, tokens, read = plain(world, *owners), texts(2, 50), []
    for layer in stock.model.layers[1:]:
        layer.mlp.gate.register_forward_hook(lambda _m, _i, out: read.append(out[0]))
    stock_logits(stock, tokens)
    tables_EV = torch.stack([world.table(owner) for owner in ("anchor", *owners)])
    counts = torch.arange(1, 51)[:, None]
    expected = tables_EV.T[tokens].cumsum(1) * (16 / (counts + 16))
    assert len(read) == tiny.LAYERS
    for logits in read:
        torch.testing.assert_close(logits.view(expected.shape), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("experts", [(), ("bob",), ("amy", "cat"), OWNERS])
@pytest.mark.parametrize("top_k", [2, None])
def test_some_experts_are_the_mixture_under_that_mask(tiny_world, plain, experts, top_k):
    tokens = texts(3, LENGTH)
    ours = tiny_world.load(*OWNERS, top_k=top_k)
    found = stock_logits(plain(tiny_world, *OWNERS, top_k=top_k, experts=experts), tokens)
    with ours.only(*experts):
        torch.testing.assert_close(found, tiny.logits_of(ours, tokens), **TOLERANCE)


def test_stock_software_writes_the_text_that_ours_writes(tiny_world, plain):
    for top_k in TOP_KS:
        stock, ours = (
            plain(tiny_world, *OWNERS, top_k=top_k),
            tiny_world.load(*OWNERS, top_k=top_k),
        )
        tokenizer = AutoTokenizer.from_pretrained(stock.name_or_path)
        for prompt in tiny.PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            whole = stock.generate(**inputs, do_sample=False, max_new_tokens=24)
            new = whole[0, inputs["input_ids"].shape[1] :]
            text = tokenizer.decode(new, skip_special_tokens=True)
            assert ours.generate(prompt, temperature=0, max_new_tokens=24) == text


def test_a_text_alone_and_padded_in_a_batch_are_the_same(tiny_world, plain):
    stock, lengths = plain(tiny_world, *OWNERS), (5, 23, 40)
    rows = [texts(1, length, seed) for seed, length in enumerate(lengths)]
    padded = torch.full((3, max(lengths)), 1)
    for row, tokens in enumerate(rows):
        padded[row, -tokens.shape[1] :] = tokens
    mask = (padded != 1) | (torch.arange(max(lengths)) >= max(lengths) - torch.tensor([lengths]).T)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = stock_logits(stock, padded, attention_mask=mask.long(), position_ids=places)
    ours = tiny_world.load(*OWNERS)
    for row, tokens in enumerate(rows):
        expected = tiny.logits_of(ours, tokens)[0]
        torch.testing.assert_close(found[row, -tokens.shape[1] :], expected, **TOLERANCE)


def test_evidence_does_not_drift_up_to_the_last_position(long_world, plain):
    tokens = texts(2, 512)
    stock, ours = plain(long_world, *OWNERS), long_world.load(*OWNERS)
    difference = (stock_logits(stock, tokens) - tiny.logits_of(ours, tokens)).abs().amax((0, 2))
    assert difference.max() < 2e-5
    assert difference[-50:].max() < 5 * difference[:50].max()


def test_many_owners_need_several_heads_and_get_them(crowded_world, plain):
    owners = sorted(crowded_world.bundles)
    stock = plain(crowded_world, *owners)
    assert stock.config.num_key_value_heads - 2 == 2
    assert largest_difference(stock, crowded_world.load(*owners), texts(2, LENGTH)) < 5e-5


def test_a_tied_head_stays_tied(tied_world, plain):
    stock = plain(tied_world, *OWNERS)
    assert stock.lm_head.weight.data_ptr() == stock.model.embed_tokens.weight.data_ptr()
    assert largest_difference(stock, tied_world.load(*OWNERS), texts(2, LENGTH)) < 5e-5


def test_in_bfloat16_it_is_as_near_to_the_truth_as_ours(half_world, plain):
    tokens = texts(4, 128)
    release = half_world.release(*OWNERS)
    truth = tiny.logits_of(load_release(release, dtype=torch.float32), tokens)
    ours = tiny.logits_of(load_release(release), tokens).float()
    stock = plain(half_world, *OWNERS, dtype="auto")
    assert stock.dtype == torch.bfloat16
    found = stock_logits(stock, tokens).float()
    assert (found - truth).abs().mean() < 2 * (ours - truth).abs().mean()
    assert (found - truth).abs().mean() < 0.05 * truth.std()


def test_without_the_separator_little_text_says_too_much(tiny_world, plain):
    # What the card warns of: nobody holds the sum back, so it is sixteen times the mean at once.
    stock, read = plain(tiny_world, *OWNERS), []
    stock.model.layers[1].mlp.gate.register_forward_hook(lambda _m, _i, out: read.append(out[0]))
    tokens = texts(1, 20)[:, 1:]
    stock_logits(stock, tokens)
    tables_EV = torch.stack([tiny_world.table(owner) for owner in ("anchor", *OWNERS)])
    counts = torch.arange(1, 20)[:, None]
    expected = 16 * tables_EV.T[tokens[0]].cumsum(0) / counts
    torch.testing.assert_close(read[0], expected, rtol=1e-4, atol=1e-4)


def test_the_configuration_is_one_layer_more_and_some_heads(long_world, plain):
    stock = plain(long_world, *OWNERS)
    before = json.loads((long_world.release(*OWNERS) / "config.json").read_text())
    after = stock.config
    assert after.num_hidden_layers == before["num_hidden_layers"] + 1
    assert after.hidden_size // after.num_attention_heads == 16
    assert (after.num_attention_heads, after.num_key_value_heads) == (4, 2)
    assert after.max_position_embeddings == before["max_position_embeddings"]


@pytest.mark.parametrize("devices", [2, 3])
def test_more_heads_for_more_devices_change_nothing(tiny_world, tmp_path, devices):
    exporting.export_plain(tiny_world.release(*OWNERS), tmp_path / "plain", devices=devices)
    stock = FlexOlmoForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert stock.config.num_attention_heads % devices == 0
    assert stock.config.num_key_value_heads % devices == 0
    tokens = texts(3, LENGTH)
    ours = tiny.logits_of(tiny_world.load(*OWNERS), tokens)
    torch.testing.assert_close(stock_logits(stock, tokens), ours, **TOLERANCE)

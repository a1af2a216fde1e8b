"""Costs against a count by hand and against PyTorch's own counter of FLOPs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config, Olmo2ForCausalLM

from moiety.baselines import costs
from moiety.baselines.costs import Cost, Sizes
from moiety.train.dense import only_blocks
from moiety.train.domains import Rows
from moiety.train.pair import Pair
from moiety.train.recipe import recipe_pair

SHAPES = {
    "plain": {},
    "shared keys": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1},
}
BATCH, WINDOW = 2, 24
TOKENS = BATCH * WINDOW


def shape(kind=Olmo2Config, **other):
    facts = {
        "vocab_size": 80,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_implementation": "eager",  # fused attention hides its products from the counter
    }
    return kind(**(facts | other))


def counted(model, *, backward):
    """FLOPs of a batch, by the operations that really ran."""
    tokens = torch.randint(2, 80, (BATCH, WINDOW))
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens, use_cache=False).logits
        if backward:
            functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    return counter.get_total_flops()


def rows(config):
    generator = torch.Generator().manual_seed(0)
    size = (config.num_hidden_layers, config.hidden_size)
    own, public = (torch.randn(size, generator=generator) for _ in range(2))
    return Rows(own, public, torch.zeros(len(own)))


def test_one_layer_counted_by_hand():
    # Width 2, block 3, vocabulary 5, windows of 4; queries and keys as wide as the state.
    sizes = Sizes(width=2, hidden=3, layers=1, vocab=5, queries=2, keys=2, window=4)
    projections = 2 * (2 * 2) * 4  # q, k, v, o
    products = 2 * (4 * 2) * 2  # 4 keys of width 2, then 4 values of width 2
    block = 2 * (2 * 3) * 3  # gate, up, down
    head = 2 * 2 * 5
    forward = projections + products + block + head
    parameters = 4 * 4 + 3 * 6 + 2 * 10 + 2 * 2 + 2 * 2 + 2
    assert forward == 120
    assert costs.dense_cost(sizes) == Cost(0, forward, parameters)
    assert costs.dense_cost(sizes, 10).training_flops == 10 * 3 * forward
    # Blocks alone: through the head, then gate, up and down by their weights, and down's input.
    trained = forward + head + block + 2 * (2 * 3)
    assert costs.dense_cost(sizes, 10, "feed-forward").training_flops == 10 * trained
    pair = forward + block
    backward = head + block + 2 * (2 * 3)
    ours = costs.pair_cost(sizes, 10)
    assert ours == Cost(10 * (pair + backward), pair, parameters + 3 * 6)
    rows = 2 * (2 * 2)  # two logits of a state of width 2; backward by their weights
    recipe = costs.pair_cost(sizes, 10, rows=2)
    assert recipe == Cost(
        10 * (pair + rows + backward + rows), pair + rows, parameters + 3 * 6 + 2 * 2
    )
    three_of_four = projections + products + 3 * block + head
    release = costs.release_cost(sizes, experts=4, top_k=3, before=[ours] * 3)
    assert release.inference_flops_per_token == three_of_four
    assert release.parameters == parameters + 3 * 3 * 6 + 4 * 5  # a table of five numbers each
    assert release.training_flops == 3 * ours.training_flops
    routed = three_of_four + 2 * (4 * 2)
    joint = costs.mixture_cost(sizes, experts=4, top_k=3, tokens=10, before=[ours])
    assert joint == Cost(
        10 * 3 * routed + ours.training_flops, routed, parameters + 3 * 3 * 6 + 4 * 2
    )


def test_the_usual_rule_of_six_flops_a_parameter_and_token():
    sizes = Sizes(4096, 11008, 32, 100352, 4096, 4096, window=1)
    cost = costs.dense_cost(sizes, 1)
    products = cost.parameters - 100352 * 4096  # embeddings are looked up
    assert cost.training_flops == pytest.approx(6 * products, rel=1e-3)
    assert cost.parameters == pytest.approx(7.30e9, rel=1e-3)  # OLMo 2 7B


@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("part", ["whole", "feed-forward"])
def test_dense_models_cost_what_the_counter_counts(how, part):
    config = shape(**SHAPES[how])
    model = Olmo2ForCausalLM(config)
    cost = costs.dense_cost(Sizes.of(config, WINDOW), TOKENS, part)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.inference_flops_per_token * TOKENS == counted(model, backward=False)
    if part == "feed-forward":
        only_blocks(model)
    assert cost.training_flops == counted(model, backward=True)


@pytest.mark.parametrize("how", SHAPES)
def test_our_pair_costs_what_the_counter_counts(how):
    """Evidence costs no product, forward or backward."""
    config = shape(**SHAPES[how])
    pair = Pair(Olmo2ForCausalLM(config), torch.randn(80), rank=None, seed=0)
    tokens = torch.randint(2, 80, (BATCH, WINDOW))
    pair.expect(tokens, torch.zeros_like(tokens))
    cost = costs.pair_cost(Sizes.of(config, WINDOW), TOKENS)
    assert cost.parameters == sum(p.numel() for p in pair.backbone.parameters())
    assert cost.inference_flops_per_token * TOKENS == counted(pair.backbone, backward=False)
    assert cost.training_flops == counted(pair.backbone, backward=True)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_release_costs_what_the_counter_counts(tiny_world, top_k):
    """Of whole experts: factors would cost a little more beside the anchor's block."""
    mixture = tiny_world.load("amy", "cat", top_k=top_k)
    backbone, table_SV = mixture.backbone, mixture.routing.table_SV
    backbone.set_attn_implementation("eager")
    cost = costs.release_cost(Sizes.of(backbone.config, WINDOW), experts=3, top_k=top_k)
    assert cost.parameters == sum(p.numel() for p in backbone.parameters()) + table_SV.numel()
    assert cost.inference_flops_per_token * TOKENS == counted(backbone, backward=False)


@pytest.mark.parametrize("how", SHAPES)
def test_a_pair_of_the_recipe_costs_what_the_counter_counts(how):
    config = shape(**SHAPES[how])
    pair = recipe_pair(Olmo2ForCausalLM(config), rows(config), bias=False)
    cost = costs.pair_cost(Sizes.of(config, WINDOW), TOKENS, rows=2)
    biases = config.num_hidden_layers
    assert cost.parameters == sum(p.numel() for p in pair.parameters()) - biases
    assert cost.inference_flops_per_token * TOKENS == counted(pair, backward=False)
    assert cost.training_flops == counted(pair, backward=True)


@pytest.mark.parametrize("part", ["whole", "experts"])
@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (3, 3)])
def test_a_mixture_costs_what_the_counter_counts(experts, top_k, part):
    config = shape(FlexOlmoConfig, num_experts=experts, num_experts_per_tok=top_k)
    model = FlexOlmoForCausalLM(config)
    model.set_experts_implementation("eager")
    sizes = Sizes.of(config, WINDOW)
    cost = costs.mixture_cost(sizes, experts=experts, top_k=top_k, tokens=TOKENS, part=part)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.inference_flops_per_token * TOKENS == counted(model, backward=False)
    if part == "experts":
        only_blocks(model)
    assert cost.training_flops == counted(model, backward=True)


def test_several_models_together():
    one, two = Cost(100, 12, 7), Cost(200, 12, 7)
    assert costs.soup_cost([one, two]) == Cost(300, 12, 7)
    assert costs.branch_train_merge_cost([one, two]) == Cost(300, 24, 14)
    routed = costs.prompt_routing_cost([one, two], prompt_tokens=2, window_tokens=8)
    assert routed == Cost(300, (2 * 24 + 6 * 12) // 8, 14)
    mixed = costs.weighted_soup_cost([one, two], prompt_tokens=2, window_tokens=8)
    assert mixed == Cost(300, routed.inference_flops_per_token + 2 * 14 // 8, 14)
    everything = costs.prompt_routing_cost([one, two], prompt_tokens=32, window_tokens=8)
    assert everything.inference_flops_per_token == 24

"""Law 2: a masked request is the release that never had the others."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests import tiny

from moiety.errors import ConfigError
from moiety.model import EvidenceCache

OWNERS = tuple(tiny.RANKS)
SUBSETS = [s for n in range(len(OWNERS)) for s in itertools.combinations(OWNERS, n)]
TOP_KS = [None, 2, 1]


def poison(mixture, names):
    """Fills everything that belongs to these experts with NaN, in memory."""
    slots = [mixture.names.index(name) for name in names]
    mixture.routing.table_SV[slots] = torch.nan
    for layer in mixture.backbone.model.layers:
        for slot in slots:
            for parameter in layer.mlp.experts[slot].parameters():
                parameter.data.fill_(torch.nan)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_selected_experts_are_bitwise_the_release_without_the_others(tiny_world, top_k):
    tokens = tiny.random_tokens(2, 24)
    whole = tiny_world.load(*OWNERS, top_k=top_k)
    for chosen in SUBSETS:
        alone = tiny_world.load(*chosen, top_k=top_k)
        expected = tiny.logits_of(alone, tokens)
        with whole.only(*chosen):
            assert torch.equal(tiny.logits_of(whole, tokens), expected)
        with whole.without(*(set(OWNERS) - set(chosen))):
            assert torch.equal(tiny.logits_of(whole, tokens), expected)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_nothing_of_a_masked_expert_is_touched_not_even_if_it_is_nan(tiny_world, top_k):
    tokens = tiny.random_tokens(2, 24)
    documents = torch.tensor([[0] * 9 + [1] * 15, [1] * 20 + [-1] * 4])
    for chosen in (("amy",), ("bob", "cat"), ()):
        alone = tiny_world.load(*chosen, top_k=top_k)
        whole = tiny_world.load(*OWNERS, top_k=top_k)
        poison(whole, set(OWNERS) - set(chosen))
        with whole.only(*chosen):
            assert torch.equal(tiny.logits_of(whole, tokens), tiny.logits_of(alone, tokens))
            assert torch.equal(whole.score(tokens, documents), alone.score(tokens, documents))
            sampling = {"temperature": 0.9, "seed": 5, "max_new_tokens": 8}
            ours = whole.generate(tiny.PROMPTS[0], **sampling)
            assert ours == alone.generate(tiny.PROMPTS[0], **sampling)


def test_k_larger_than_the_number_allowed_is_all_that_are_allowed(tiny_world):
    tokens = tiny.random_tokens(2, 24)
    whole = tiny_world.load(*OWNERS, top_k=3)
    alone = tiny_world.load("bob", top_k=None)
    poison(whole, {"amy", "cat"})
    with whole.only("bob"):
        assert torch.equal(tiny.logits_of(whole, tokens), tiny.logits_of(alone, tokens))


@pytest.mark.parametrize("top_k", TOP_KS)
def test_requests_of_one_batch_with_sets_of_their_own_equal_each_alone(tiny_world, top_k):
    whole = tiny_world.load(*OWNERS, top_k=top_k)
    sets = [("amy",), (), ("bob", "cat"), OWNERS]
    tokens = tiny.random_tokens(len(sets), 24)
    with whole._each(sets, len(sets)):
        together = tiny.logits_of(whole, tokens)
    for row, chosen in enumerate(sets):
        alone = tiny_world.load(*chosen, top_k=top_k)
        expected = tiny.logits_of(alone, tokens[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_nan_in_an_expert_reaches_only_the_requests_that_may_use_it(tiny_world, top_k):
    sets = [("amy",), ("cat",), (), ("amy", "bob")]
    tokens = tiny.random_tokens(len(sets), 24)
    whole = tiny_world.load(*OWNERS, top_k=top_k)
    poison(whole, {"cat"})
    with whole._each(sets, len(sets)):
        together = tiny.logits_of(whole, tokens)
    assert together[1].isnan().any()
    for row in (0, 2, 3):
        alone = tiny_world.load(*sets[row], top_k=top_k)
        expected = tiny.logits_of(alone, tokens[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-5, atol=1e-5)


def test_an_expert_that_every_row_forbids_leaks_nowhere_even_when_it_is_in_the_pass(tiny_world):
    whole = tiny_world.load(*OWNERS, top_k=2)
    poison(whole, {"cat"})
    tokens = tiny.random_tokens(2, 24)
    allowed = torch.tensor([[True, True, False, False], [True, False, True, False]])
    with whole.routing.using((0, 1, 2, 3), allowed):
        together = tiny.logits_of(whole, tokens)
    for row, chosen in enumerate([("amy",), ("bob",)]):
        alone = tiny_world.load(*chosen, top_k=2)
        expected = tiny.logits_of(alone, tokens[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], expected, rtol=1e-5, atol=1e-5)


def test_a_mask_ends_with_its_block_even_when_the_block_fails(tiny_world):
    whole, tokens = tiny_world.load(*OWNERS), tiny.random_tokens(1, 8)
    before = tiny.logits_of(whole, tokens)
    with pytest.raises(ZeroDivisionError), whole.only("amy"), whole.without("amy"):
        raise ZeroDivisionError
    assert torch.equal(tiny.logits_of(whole, tokens), before)


def test_keys_and_values_made_with_one_set_are_refused_to_another(tiny_world):
    whole, tokens = tiny_world.load(*OWNERS), tiny.random_tokens(2, 8)
    makers = [
        lambda: whole.only("amy"),
        lambda: whole.only("amy", "bob"),
        lambda: whole.without(),
        lambda: whole._each([("amy",), ("bob",)], 2),
        lambda: whole._each([("bob",), ("amy",)], 2),
    ]
    for maker, user in itertools.permutations(makers, 2):
        cache = EvidenceCache(config=whole.backbone.config)
        with maker(), torch.inference_mode():
            whole.backbone(input_ids=tokens, past_key_values=cache)
            whole.backbone(input_ids=tokens[:, :1], past_key_values=cache)
        with user(), pytest.raises(ConfigError, match="made with other experts"):
            whole.backbone(input_ids=tokens[:, :1], past_key_values=cache)

"""Law 6: generation with a cache is full recomputation; a batch is each request alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests import tiny
from transformers import GenerationConfig

from moiety.errors import ConfigError
from moiety.model import EvidenceCache

OWNERS = tuple(tiny.RANKS)
SETS = [("amy",), (), ("bob", "cat"), OWNERS]
TOKENS = 16


@pytest.fixture(scope="module", params=[None, 2, 1])
def mixture(request, tiny_world):
    return tiny_world.load(*OWNERS, top_k=request.param)


def greedy(mixture, prompt, **how):
    return mixture.generate(prompt, temperature=0, max_new_tokens=TOKENS, **how)


def beams(mixture, prompt, **how):
    """The backbone's own generation, with our cache, asked for more than our door offers."""
    inputs = mixture._encode([prompt])
    config = GenerationConfig(
        max_new_tokens=TOKENS,
        eos_token_id=0,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
        **how,
    )
    cache = EvidenceCache(config=mixture.backbone.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = mixture.backbone.generate(**inputs, generation_config=config, past_key_values=cache)
    return made, inputs["input_ids"].shape[1]


def nats(mixture, sequence, begin):
    """Nats of each token of a sequence from ``begin`` on, in one pass without a cache."""
    logits = tiny.logits_of(mixture, sequence[None])[0].log_softmax(dim=-1)
    return -logits[:-1].gather(1, sequence[1:, None])[begin - 1 :, 0]


def test_cached_generation_equals_recomputation_from_the_beginning(mixture):
    for prompt in tiny.PROMPTS:
        for chosen in SETS:
            with mixture.only(*chosen):
                text = greedy(mixture, prompt)
            assert text == tiny.greedy_by_recomputation(mixture, prompt, TOKENS, chosen)


def test_prompts_of_different_lengths_padded_together_equal_each_alone(mixture):
    alone = [greedy(mixture, prompt) for prompt in tiny.PROMPTS]
    assert greedy(mixture, tiny.PROMPTS) == alone
    assert len(set(alone)) > 1


def test_requests_with_sets_of_their_own_equal_each_alone(mixture):
    prompts = [tiny.PROMPTS[n % 3] for n in range(len(SETS))]
    alone = []
    for prompt, chosen in zip(prompts, SETS, strict=True):
        with mixture.only(*chosen):
            alone.append(greedy(mixture, prompt))
    assert greedy(mixture, prompts, experts=SETS) == alone


def test_a_prompt_fed_in_pieces_equals_one_pass(mixture):
    tokens = tiny.random_tokens(2, 30)
    expected = tiny.logits_of(mixture, tokens)
    for borders in ([0, 1, 2, 17, 30], [0, 29, 30], [0, 15, 30]):
        cache = EvidenceCache(config=mixture.backbone.config)
        with torch.inference_mode():
            parts = [
                mixture.backbone(input_ids=tokens[:, a:b], past_key_values=cache).logits
                for a, b in itertools.pairwise(borders)
            ]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_several_greedy_answers_to_one_prompt_are_one_answer_several_times(mixture):
    made, begin = beams(
        mixture, tiny.PROMPTS[0], do_sample=False, num_beams=3, num_return_sequences=3
    )
    assert len({tuple(row) for row in made.sequences[:, begin:].tolist()}) == 3
    text = greedy(mixture, [tiny.PROMPTS[0]] * 3)
    assert text == [greedy(mixture, tiny.PROMPTS[0])] * 3


def test_the_scores_of_sampled_answers_are_those_of_recomputation(mixture):
    made, begin = beams(mixture, tiny.PROMPTS[2], do_sample=True, num_return_sequences=4, top_k=0)
    assert len({tuple(row) for row in made.sequences.tolist()}) == 4
    for row, sequence in enumerate(made.sequences):
        found = [
            -float(step[row].log_softmax(dim=-1)[token])
            for step, token in zip(made.scores, sequence[begin:], strict=True)
        ]
        end = next((n for n, t in enumerate(sequence[begin:]) if t == 0), len(found) - 1) + 1
        expected = nats(mixture, sequence[: begin + end], begin)
        torch.testing.assert_close(torch.tensor(found[:end]), expected, rtol=1e-4, atol=1e-4)


def test_beam_search_carries_each_beams_own_evidence(mixture):
    made, begin = beams(
        mixture, tiny.PROMPTS[2], do_sample=False, num_beams=4, num_return_sequences=4
    )
    swaps = 0
    for row, sequence in enumerate(made.sequences):
        ends = (sequence[begin:] == 0).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(sequence) - begin
        score = -nats(mixture, sequence[: begin + length], begin).sum() / length
        assert float(made.sequences_scores[row]) == pytest.approx(float(score), abs=1e-4)
        swaps += len(set(made.beam_indices[row].tolist()) - {-1}) > 1
    assert swaps > 0, "no beam changed its row, so nothing was reordered"


def test_the_cache_follows_every_way_of_choosing_rows(mixture):
    tokens = tiny.random_tokens(3, 12)
    picks = {
        "reorder_cache": (torch.tensor([2, 0, 0]), [2, 0, 0]),
        "batch_repeat_interleave": (2, [0, 0, 1, 1, 2, 2]),
        "batch_select_indices": (torch.tensor([2, 1]), [2, 1]),
    }
    for method, (argument, rows) in picks.items():
        cache = EvidenceCache(config=mixture.backbone.config)
        with torch.inference_mode():
            mixture.backbone(input_ids=tokens[:, :8], past_key_values=cache)
            getattr(cache, method)(argument)
            found = mixture.backbone(input_ids=tokens[rows, 8:], past_key_values=cache).logits
        expected = tiny.logits_of(mixture, tokens[rows])[:, 8:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_evidence_cannot_be_cropped(mixture):
    cache = EvidenceCache(config=mixture.backbone.config)
    with pytest.raises(ConfigError, match="cannot be cropped"):
        cache.crop(1)


def test_an_emptied_cache_is_a_new_one(mixture):
    first, second = tiny.random_tokens(1, 8, seed=1), tiny.random_tokens(1, 8, seed=2)
    cache = EvidenceCache(config=mixture.backbone.config)
    with torch.inference_mode():
        mixture.backbone(input_ids=first, past_key_values=cache)
        cache.reset()
        with mixture.only("amy"):
            found = mixture.backbone(input_ids=second, past_key_values=cache).logits
            assert torch.equal(found, tiny.logits_of(mixture, second))


def test_a_cache_that_carries_no_evidence_is_refused(mixture):
    from transformers import DynamicCache

    tokens, cache = tiny.random_tokens(1, 4), DynamicCache(config=mixture.backbone.config)
    with torch.inference_mode(), pytest.raises(ConfigError, match="carries evidence"):
        mixture.backbone(input_ids=tokens, past_key_values=cache)

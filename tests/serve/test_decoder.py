"""The backbone run by us against the library's, where sizes and numbers are not the usual ones."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from tests.serve.asking import answers, ask, engine

from moiety.errors import ConfigError
from moiety.merge import load_release
from moiety.serve.decoder import shares_of
from moiety.serve.engine import LocalEngine
from moiety.serve.packed import FeedForward, LowRankFeedForward, Packed

PROMPT = tuple(range(2, 40))


def told(running):
    jobs = [ask(PROMPT[n:], prompt_logprobs=True, stop_tokens=frozenset()) for n in range(3)]
    return [[step.logprob for step in steps] for steps, _ in answers(running, jobs)], jobs


def logprobs_of(mixture, sequence):
    logprobs = tiny.logits_of(mixture, torch.tensor([sequence]))[0].float().log_softmax(dim=-1)
    return [float(logprobs[at, token]) for at, token in enumerate(sequence[1:])]


@pytest.mark.parametrize(
    "shape",
    [
        {"num_key_value_heads": 2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0}},
    ],
    ids=["shared-heads", "other-rotation", "linear", "yarn"],
)
def test_other_shapes_are_computed_as_the_library_does(tmp_path, shape):
    world = tiny.make_world(tmp_path, **shape)
    with engine(world.load(*tiny.RANKS)) as running:
        found, jobs = told(running)
    oracle = world.load(*tiny.RANKS)
    for logprobs, job in zip(found, jobs, strict=True):
        rest = logprobs_of(oracle, list(job.prompt))
        assert logprobs[: len(rest)] == pytest.approx(rest, abs=1e-4)


def test_positions_that_change_with_the_length_are_refused(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    world = tiny.make_world(tmp_path, rope_parameters=rope)
    with pytest.raises(ConfigError, match="dynamic"):
        LocalEngine(world.load(*tiny.RANKS))


def test_half_the_bits_say_nearly_the_same(tiny_world):
    folder = tiny_world.release(*tiny.RANKS)
    with engine(load_release(folder, dtype=torch.bfloat16)) as running:
        found, jobs = told(running)
    oracle = load_release(folder, dtype=torch.bfloat16)
    for logprobs, job in zip(found, jobs, strict=True):
        rest = logprobs_of(oracle, list(job.prompt))
        off = [abs(a - b) for a, b in zip(logprobs, rest, strict=False)]
        assert sum(off) / len(off) < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_the_weights_that_are_not_zero(seed):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(9, 5, generator=rng)
    weights[torch.rand(9, 5, generator=rng) < 0.1 * (seed % 10)] = 0
    shares = shares_of(weights)
    found = torch.zeros_like(weights)
    for slot, weight in shares.whole:
        assert (weight != 0).all()
        found[:, slot] = weight[:, 0]
    slots = [slot for slot, n in zip(shares.some, shares.counts, strict=True) for _ in range(n)]
    for slot, row, weight in zip(slots, shares.row_M, shares.weight_M1[:, 0], strict=True):
        assert weight != 0
        found[row, slot] += weight
    assert torch.equal(found, weights)


def test_packed_blocks_are_the_modules_they_were_made_of(tiny_world):
    mixture = tiny_world.load(*tiny.RANKS)
    for rows in (1, 3, 16, 40):
        hidden = torch.randn(rows, tiny.WIDTH)
        for layer in mixture.backbone.model.layers:
            anchor, *others = layer.mlp.experts
            packed = FeedForward(anchor)
            pairs = [(anchor, packed)]
            pairs += [
                (
                    expert,
                    LowRankFeedForward(packed, expert)
                    if hasattr(expert.gate_proj, "delta_in")
                    else FeedForward(expert),
                )
                for expert in others
            ]
            with torch.inference_mode():
                for module, ours in pairs:
                    torch.testing.assert_close(ours(hidden), module(hidden), rtol=1e-4, atol=1e-4)


def test_a_packed_matrix_is_a_copy_and_frees_nothing_of_the_original():
    weight = torch.randn(5, 7)
    packed, before = Packed(weight), weight.clone()
    rows = torch.randn(3, 7)
    torch.testing.assert_close(packed(rows), rows @ weight.T)
    assert torch.equal(weight, before)

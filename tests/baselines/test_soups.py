"""Soups against their definition, and the scores of models against transformers' own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.baselines import load_joint, score, soups
from moiety.errors import FormatError
from moiety.model import load_dense


def shaken(anchor, seed):
    """The anchor with noise in every tensor."""
    model = load_dense(anchor, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def models(tiny_anchor):
    return [shaken(tiny_anchor, seed) for seed in range(3)]


@pytest.mark.parametrize("copies", [1, 2, 3, 7, 10])
def test_a_soup_of_copies_is_the_copy_bit_for_bit(models, copies):
    state = models[0].state_dict()
    mixed = soups.soup([state] * copies, [1 / copies] * copies)
    assert mixed.keys() == state.keys()
    assert all(torch.equal(mixed[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_one_is_that_model_and_weight_zero_is_gone(models, dtype):
    states = [{n: t.to(dtype) for n, t in model.state_dict().items()} for model in models]
    mixed = soups.soup(states, [1.0, 0.0, 0.0])
    assert all(torch.equal(mixed[name], states[0][name]) for name in mixed)
    assert {tensor.dtype for tensor in mixed.values()} == {dtype}


def test_a_weighted_soup_is_the_weighted_mean(models):
    states = [model.state_dict() for model in models]
    mixed = soups.soup(states, [0.2, 0.3, 0.5])
    for name, tensor in mixed.items():
        expected = 0.2 * states[0][name] + 0.3 * states[1][name] + 0.5 * states[2][name]
        torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.5, 0.5], []])
def test_weights_that_are_no_mean_are_refused(models, weights):
    with pytest.raises(ValueError, match="weights"):
        soups.soup([model.state_dict() for model in models], weights)


def nats_by_hand(model, tokens):
    with torch.no_grad():
        logs = model(input_ids=torch.from_numpy(tokens[:, :-1])).logits.float().log_softmax(-1)
    return -logs.gather(2, torch.from_numpy(tokens[:, 1:, None]))[:, :, 0].numpy()


def test_scores_are_those_of_all_logits_at_once(models):
    tokens = tiny.random_tokens(19, 33).numpy()  # more than one batch
    found = score(models[1], tokens)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, nats_by_hand(models[1], tokens), rtol=1e-4, atol=1e-4)


def test_windows_of_a_packed_text_are_scored_like_their_tokens(models, bench):
    windows = bench.texts.own_heldout.windows([0, 1])
    assert np.array_equal(score(models[0], windows), score(models[0], windows.tokens))


def test_every_window_gets_a_soup_of_its_own(models):
    tokens = tiny.random_tokens(3, 17).numpy()
    weights = np.array([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75], [0.5, 0.5, 0.0]])
    before = [model.state_dict()["lm_head.weight"].clone() for model in models]
    found = soups.score_soups(models, weights, tokens)
    states = [model.state_dict() for model in models]
    for window in range(3):
        alone = shaken_like(models[0], soups.soup(states, weights[window].tolist()))
        expected = nats_by_hand(alone, tokens[window : window + 1])
        np.testing.assert_allclose(found[window : window + 1], expected, rtol=1e-4, atol=1e-4)
    for model, head in zip(models, before, strict=True):
        assert torch.equal(model.state_dict()["lm_head.weight"], head), "the models are untouched"


def shaken_like(model, state):
    other = type(model)(model.config).eval()
    other.load_state_dict(state)
    return other


def test_what_is_no_mixture_is_not_loaded_as_one(tiny_anchor, tmp_path):
    with pytest.raises(FormatError):
        load_joint(tiny_anchor)
    with pytest.raises(FormatError):
        load_joint(tmp_path)

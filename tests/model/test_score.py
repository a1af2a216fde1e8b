"""Scores and the training loss against cross-entropy of whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from tests import tiny
from torch.nn import functional

from moiety.model import load_dense, score, token_nats, training_loss


@pytest.fixture
def backbone(tiny_anchor):
    return load_dense(tiny_anchor, dtype=torch.float32)


def test_token_nats_equal_cross_entropy_of_all_logits(backbone, monkeypatch):
    tokens = tiny.random_tokens(5, 31)
    with torch.inference_mode():
        logits = backbone(input_ids=tokens[:, :-1]).logits
    expected = functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    for chunk in (1, 7, 64, score.CHUNK_TOKENS):
        monkeypatch.setattr(score, "CHUNK_TOKENS", chunk)
        found = token_nats(backbone, tokens[:, :-1], tokens[:, 1:])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_probabilities_of_all_next_tokens_sum_to_one(backbone):
    tokens = tiny.random_tokens(1, 9)
    batch = tokens.expand(tiny.VOCAB, -1)
    targets = torch.arange(tiny.VOCAB)[:, None].expand(-1, 9)
    last = token_nats(backbone, batch, targets)[:, -1]
    assert float((-last.double()).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_no_logits_of_the_whole_text_ever_exist(backbone, monkeypatch):
    monkeypatch.setattr(score, "CHUNK_TOKENS", 8)
    sizes = []
    backbone.lm_head.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[0]))
    tokens = tiny.random_tokens(3, 21)
    token_nats(backbone, tokens[:, :-1], tokens[:, 1:])
    assert sizes == [8] * 7 + [4]


def test_training_loss_and_its_gradient_are_cross_entropy_s(backbone):
    tokens = tiny.random_tokens(4, 25)
    targets = tokens[:, 1:].clone()
    targets[0, 5:] = targets[2, :3] = -100
    grown = {}
    for name in ("ours", "whole"):
        backbone.zero_grad()
        if name == "ours":
            loss = training_loss(backbone, tokens[:, :-1], targets)
        else:
            logits = backbone(input_ids=tokens[:, :-1]).logits
            loss = functional.cross_entropy(logits.mT, targets, ignore_index=-100)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in backbone.named_parameters()}
        grown[name] = gradients | {"loss": loss.detach()}
    for name, expected in grown["whole"].items():
        torch.testing.assert_close(grown["ours"][name], expected, rtol=1e-4, atol=1e-6)


def test_training_loss_runs_the_decoder_it_is_given(backbone):
    tokens, seen = tiny.random_tokens(2, 9), []

    def decoder(**inputs):
        seen.append(inputs)
        return backbone.model(**inputs)

    training_loss(backbone, tokens[:, :-1], tokens[:, 1:], decoder)
    assert len(seen) == 1


def test_a_model_of_zeros_knows_nothing(backbone):
    with torch.no_grad():
        backbone.lm_head.weight.zero_()
    tokens = tiny.random_tokens(2, 9)
    nats = token_nats(backbone, tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(nats, torch.full((2, 8), math.log(tiny.VOCAB)))

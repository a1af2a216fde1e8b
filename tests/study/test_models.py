"""Models opened to be scored, against each window read alone."""

from __future__ import annotations

import numpy as np
import torch
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

from moiety.study.models import _score_plain
from moiety.study.scores import Windows

SEPARATOR, VOCAB, WINDOW = 0, 60, 12


def stock_mixture():
    shape = FlexOlmoConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=3,
        num_experts_per_tok=2,
        initializer_range=0.3,
        bos_token_id=SEPARATOR,
        eos_token_id=SEPARATOR,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FlexOlmoForCausalLM(shape).eval()


def nats_by_hand(model, window):
    """Target by target, each from a pass of its own over a text that begins with the separator."""
    found = []
    for place in range(1, len(window)):
        before = [int(token) for token in window[:place]]
        text = before if before[0] == SEPARATOR else [SEPARATOR, *before]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        found.append(-float(logits.double().log_softmax(-1)[int(window[place])]))
    return found


def test_a_plain_checkpoint_reads_every_window_from_a_separator():
    """Windows that go on with a document lack one; they keep their order and their targets."""
    model, dice = stock_mixture(), np.random.default_rng(0)
    tokens = dice.integers(2, VOCAB, (5, WINDOW + 1))
    for begun in ((), (0, 3), range(5)):
        here = tokens.copy()
        here[list(begun), 0] = SEPARATOR
        found = _score_plain(model, SEPARATOR, Windows(here, np.zeros_like(here)))
        assert found.shape == (5, WINDOW)
        np.testing.assert_allclose(found, [nats_by_hand(model, one) for one in here], atol=1e-4)

"""Law 1: our mixture is the stock one on the same folder, and a naive loop over positions."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, FlexOlmoForCausalLM

from moiety.model import load_dense

OWNERS = tuple(tiny.RANKS)
TOP_KS = [1, 2, None]


class NaiveMixture(nn.Module):
    """One layer's mixture, one position at a time, straight from the owners' bundles."""

    def __init__(self, world, layer, kind, top_k, tokens, documents):
        super().__init__()
        self.names = ["anchor", *OWNERS]
        self.rows = [world.row(name, layer) for name in self.names]
        self.tables = [world.table(name) for name in self.names]
        self.matrices = [world.matrices(name) for name in self.names]
        self.layer, self.kind, self.top_k = layer, kind, top_k
        self.tokens, self.documents = tokens.tolist(), documents

    def expert(self, number: int, h: Tensor) -> Tensor:
        gate, up, down = (
            self.matrices[number][self.layer, m] for m in ("gate_proj", "up_proj", "down_proj")
        )
        return down @ (functional.silu(gate @ h) * (up @ h))

    def logit(self, number: int, states: Tensor, request: int, at: int) -> Tensor:
        if self.kind == "token":
            return self.rows[number] @ states[at]
        document = self.documents[request][at]
        begin = at
        while begin > 0 and self.documents[request][begin - 1] == document:
            begin -= 1
        said = [self.tables[number][self.tokens[request][place]] for place in range(begin, at + 1)]
        return torch.stack(said).sum() * 16 / (len(said) + 16)

    def forward(self, hidden: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        for request, states in enumerate(hidden):
            for at, h in enumerate(states):
                logits = [self.logit(n, states, request, at) for n in range(len(self.names))]
                shares = torch.stack(logits).softmax(dim=0).tolist()
                order = sorted(range(len(shares)), key=lambda n: -shares[n])
                for number in order[: self.top_k]:
                    out[request, at] += shares[number] * self.expert(number, h)
        return out


def naive_logits(world, tokens, documents, kind, top_k):
    backbone = load_dense(world.anchor)
    for number, layer in enumerate(backbone.model.layers):
        layer.mlp = NaiveMixture(world, number, kind, top_k or 99, tokens, documents)
    with torch.inference_mode():
        return backbone(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("top_k", TOP_KS)
def test_token_rows_equal_the_stock_mixture_on_the_same_folder(tiny_world, top_k):
    folder = tiny_world.release(*OWNERS, top_k=top_k)
    stock, report = FlexOlmoForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {name: list(found) for name, found in report.items() if found} == {}
    ours = tiny_world.load(*OWNERS, top_k=top_k, routing="token")
    tokens = tiny.random_tokens(3, 40)
    with torch.inference_mode():
        expected = stock.eval()(input_ids=tokens).logits
    torch.testing.assert_close(tiny.logits_of(ours, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", TOP_KS)
def test_token_rows_write_the_text_that_the_stock_mixture_writes(tiny_world, top_k):
    folder = tiny_world.release(*OWNERS, top_k=top_k)
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(stock) is FlexOlmoForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = tiny_world.load(*OWNERS, top_k=top_k, routing="token")
    for prompt in tiny.PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        whole = stock.generate(**inputs, do_sample=False, max_new_tokens=24)
        text = tokenizer.decode(whole[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert ours.generate(prompt, temperature=0, max_new_tokens=24) == text


@pytest.mark.parametrize("kind", ["context", "token"])
@pytest.mark.parametrize("top_k", TOP_KS)
def test_either_routing_equals_a_naive_loop_over_positions(tiny_world, kind, top_k):
    tokens = tiny.random_tokens(2, 13)
    expected = naive_logits(tiny_world, tokens, [[0] * 13] * 2, kind, top_k)
    for native in (False, True):
        ours = tiny_world.load(*OWNERS, top_k=top_k, native=native, routing=kind)
        torch.testing.assert_close(tiny.logits_of(ours, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [2, None])
def test_evidence_in_packed_windows_begins_anew_at_every_document(tiny_world, top_k):
    tokens = tiny.random_tokens(2, 15)
    documents = [[0] * 4 + [1] * 1 + [2] * 10, [2] * 6 + [3] * 5 + [-1] * 4]
    inputs = [row[:-1] for row in documents]
    logits = naive_logits(tiny_world, tokens[:, :-1], inputs, "context", top_k)
    expected = functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    ours = tiny_world.load(*OWNERS, top_k=top_k)
    found = ours.score(tokens, torch.tensor(documents))
    real = torch.tensor(documents)[:, 1:] >= 0
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    whole = naive_logits(tiny_world, tokens[:, :-1], [[0] * 14] * 2, "context", top_k)
    assert (whole - logits).abs().max() > 0.01, "the borders must matter for this to say anything"


def test_the_experts_are_far_enough_apart_for_these_laws_to_bite(tiny_world):
    tokens = tiny.random_tokens(2, 30)
    ours = tiny_world.load(*OWNERS)
    whole = tiny.logits_of(ours, tokens)
    for owner in OWNERS:
        with ours.without(owner):
            assert (tiny.logits_of(ours, tokens) - whole).abs().max() > 0.05
    ours.routing.mode = "token"
    assert (tiny.logits_of(ours, tokens) - whole).abs().max() > 0.05

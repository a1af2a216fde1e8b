"""Evidence over context against a loop over positions and documents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.family import ENTRY_MAX, WITNESSES
from moiety.model import Borders, evidence
from moiety.model.evidence import continued_evidence

QUICK = settings(max_examples=40, deadline=None, derandomize=True)

batches = st.integers(1, 3)
lengths = st.integers(1, 12)


def scores_of(batch, length, seed, experts=2):
    return torch.randn(batch, length, experts, generator=torch.Generator().manual_seed(seed))


def evidence_by_loop(scores, documents):
    """The sum over the unbroken stretch of one document that ends here, times w / (t + w)."""
    logits = torch.zeros_like(scores)
    for request in range(scores.shape[0]):
        for at in range(scores.shape[1]):
            begin = at
            while begin and documents[request][begin - 1] == documents[request][at]:
                begin -= 1
            seen = [scores[request, place] for place in range(begin, at + 1)]
            logits[request, at] = sum(seen) * 16 / (len(seen) + 16)
    return logits


@QUICK
@given(batches, lengths, st.integers(0, 99))
def test_without_borders_a_row_is_one_document(batch, length, seed):
    scores = scores_of(batch, length, seed)
    expected = evidence_by_loop(scores, [[0] * length] * batch)
    torch.testing.assert_close(evidence(scores), expected)


@QUICK
@given(st.data(), batches, lengths, st.integers(0, 99))
def test_with_borders_documents_never_touch(data, batch, length, seed):
    row = st.lists(st.integers(-1, 2), min_size=length, max_size=length)
    documents = data.draw(st.lists(row, min_size=batch, max_size=batch))
    scores = scores_of(batch, length, seed)
    found = evidence(scores, Borders.from_documents(torch.tensor(documents)))
    torch.testing.assert_close(found, evidence_by_loop(scores, documents), rtol=1e-4, atol=1e-5)


def test_borders_say_where_each_document_begins_and_what_is_padding():
    borders = Borders.from_documents(torch.tensor([[4, 4, 5, 5, 5, -1], [7, 8, 7, 7, 7, 7]]))
    assert borders.starts_BT.tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 2, 2]]
    assert borders.real_BT.tolist() == [[True] * 5 + [False], [True] * 6]


@pytest.mark.parametrize(("tokens", "nats"), [(1, 16 / 17), (16, 8), (48, 12), (16 * 999, 15.984)])
def test_tokens_that_all_say_one_nat_say_this_much_together(tokens, nats):
    found = evidence(torch.ones(1, tokens, 1))[0, -1, 0]
    assert float(found) == pytest.approx(nats, rel=1e-6)


def test_no_text_says_more_than_so_many_witnesses_who_are_sure():
    for sign in (1, -1):
        found = evidence(torch.full((1, 4096, 1), sign * ENTRY_MAX))[0, :, 0]
        assert (sign * found).diff().gt(0).all(), "more of the same text says more"
        assert 0.99 * WITNESSES * ENTRY_MAX < float(sign * found[-1]) < WITNESSES * ENTRY_MAX


def test_evidence_is_float32_whatever_comes_in():
    scores = scores_of(1, 2000, 0).bfloat16()
    borders = Borders.from_documents(torch.zeros(1, 2000, dtype=torch.long))
    places = torch.arange(1, 2001)[None, :, None]
    expected = scores.double().cumsum(1) * 16 / (places + 16)
    for found in (
        evidence(scores),
        evidence(scores, borders),
        continued_evidence(scores, None, None)[0],
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@QUICK
@given(st.data(), batches, lengths, st.integers(0, 99))
def test_chunks_of_any_size_equal_one_pass(data, batch, length, seed):
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())))
    scores, past, parts = scores_of(batch, length, seed), None, []
    for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
        logits, past = continued_evidence(scores[:, begin:end], None, past)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), evidence(scores), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(past.total_BE, scores.sum(1))
    assert past.count_B.tolist() == [length] * batch


@QUICK
@given(st.data(), lengths, st.integers(0, 99))
def test_padding_on_the_left_adds_nothing_and_counts_nothing(data, length, seed):
    padding = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    widest = max(padding) + length
    scores = scores_of(len(padding), widest, seed)
    valid = torch.ones(len(padding), widest, dtype=torch.long)
    for request, count in enumerate(padding):
        valid[request, :count] = 0
        scores[request, :count] = torch.nan
    logits, sums = continued_evidence(scores, valid, None)
    for request, count in enumerate(padding):
        alone, alone_sums = continued_evidence(scores[request : request + 1, count:], None, None)
        torch.testing.assert_close(logits[request : request + 1, count:], alone)
        torch.testing.assert_close(sums.total_BE[request], alone_sums.total_BE[0])
        assert sums.count_B[request] == widest - count


@pytest.mark.parametrize("length", [1, 5])
def test_an_empty_batch_has_no_evidence(length):
    assert evidence(torch.zeros(0, length, 3)).shape == (0, length, 3)

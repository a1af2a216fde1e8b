"""What comes back of a document: measured on the continuation, alike for every view."""

from __future__ import annotations

from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny
from tests.audit.conftest import PREFIX_TOKENS, SEPARATOR, TOKENS

from moiety.audit.extraction import (
    Continuations,
    ExtractionResults,
    ExtractionSettings,
    compare,
    continue_documents,
    extraction_of,
    longest_runs,
)
from moiety.audit.views import views_of
from moiety.errors import ConfigError

SETTINGS = ExtractionSettings(prefix_tokens=PREFIX_TOKENS, samples=3)


def view_of(mixture, name: str, owner: str = "amy"):
    return next(view for view in views_of(mixture, owner) if view.name == name)


@given(st.lists(st.lists(st.integers(0, 3), min_size=24, max_size=24), min_size=1, max_size=4))
def test_the_longest_run_is_what_a_naive_search_finds(rows: list[list[int]]) -> None:
    pairs = np.array(rows)
    said, true = pairs[:, :12], pairs[:, 12:]
    found = longest_runs(said, true)
    for number, (left, right) in enumerate(zip(said.tolist(), true.tolist(), strict=True)):
        longest = 0
        for a in range(12):
            for b in range(12):
                length = 0
                while max(a, b) + length < 12 and left[a + length] == right[b + length]:
                    length += 1
                longest = max(longest, length)
        assert found[number] == longest


def test_closeness_is_that_of_texts(tiny_world: tiny.World) -> None:
    tokenizer = tiny_world.load("amy").tokenizer
    true = tiny.random_tokens(4, 24, seed=1).numpy()
    near, far = true.copy(), true.copy()
    near[:, 3] = 40  # one token of 24 is wrong
    far[:, ::3] = 41
    sampled = np.stack([far, near], axis=1)
    found = compare(Continuations(sampled, far), true, tokenizer, 0.9)
    assert not found.verbatim.any()
    assert compare(Continuations(sampled[:, :1], far), true, tokenizer, 0.9).extracted.sum() == 0
    for row in range(4):
        texts = [tokenizer.decode(tokens.tolist()) for tokens in (true[row], near[row])]
        assert found.extracted[row] == (1 - _distance(*texts) / max(map(len, texts)) >= 0.9)


def test_the_greedy_continuation_is_one_of_the_tries(tiny_world: tiny.World) -> None:
    true = tiny.random_tokens(4, 24, seed=1).numpy()
    far = true.copy()
    far[:, ::3] = 41
    greedy = np.where(np.arange(4)[:, None] < 3, true, far)
    said = Continuations(np.stack([far, far], axis=1), greedy)
    found = compare(said, true, tiny_world.load("amy").tokenizer, 0.9)
    assert found.extracted.tolist() == found.verbatim.tolist() == [True, True, True, False]
    assert found.runs.tolist()[:3] == [24, 24, 24]


def _distance(left: str, right: str) -> int:
    """Levenshtein by the book."""
    before = list(range(len(right) + 1))
    for a, one in enumerate(left, start=1):
        row = [a]
        for b, other in enumerate(right, start=1):
            row.append(min(before[b] + 1, row[-1] + 1, before[b - 1] + (one != other)))
        before = row
    return before[-1]


def test_a_prefix_said_again_counts_for_nothing(
    tiny_world: tiny.World, attacked: np.ndarray
) -> None:
    prefix, true = attacked[:, :16], attacked[:, 16:]
    said = Continuations(np.stack([prefix, prefix], axis=1), prefix)
    found = compare(said, true, tiny_world.load("amy").tokenizer, 0.9)
    assert not found.extracted.any()
    assert not found.verbatim.any()
    shared = [_block(p, t) for p, t in zip(prefix.tolist(), true.tolist(), strict=True)]
    assert found.runs.tolist() == shared


def _block(left: list[int], right: list[int]) -> int:
    return SequenceMatcher(None, left, right, autojunk=False).find_longest_match().size


def test_greedy_continuations_are_those_of_recomputation(
    tiny_world: tiny.World, attacked: np.ndarray
) -> None:
    mixture = tiny_world.load("amy", "bob")
    for name in ("expert", "release"):
        view = view_of(mixture, name)
        found = continue_documents(view, attacked[:2], SEPARATOR, SETTINGS).greedy
        for row in range(2):
            ids = [SEPARATOR, *attacked[row, :PREFIX_TOKENS].tolist()]
            with view.using():
                for _ in range(TOKENS - PREFIX_TOKENS):
                    last = tiny.logits_of(mixture, torch.tensor([ids]))[0, -1].clone()
                    last[SEPARATOR] = -torch.inf
                    ids.append(int(last.argmax()))
            assert found[row].tolist() == ids[PREFIX_TOKENS + 1 :]


def test_after_withdrawal_not_a_token_differs(tiny_world: tiny.World, attacked: np.ndarray) -> None:
    with_owner = view_of(tiny_world.load("amy", "bob", "cat"), "withdrawn", "bob")
    without = view_of(tiny_world.load("amy", "cat"), "release", "cat")
    left, right = (
        continue_documents(view, attacked, SEPARATOR, SETTINGS) for view in (with_owner, without)
    )
    assert np.array_equal(left.sampled, right.sampled)
    assert np.array_equal(left.greedy, right.greedy)
    other = continue_documents(without, attacked, SEPARATOR, replace(SETTINGS, seed=1))
    assert not np.array_equal(other.sampled, right.sampled)


def test_samples_differ_and_progress_is_told(tiny_world: tiny.World, attacked: np.ndarray) -> None:
    heard: list[tuple[int, int]] = []
    settings = replace(SETTINGS, samples=16)
    view = view_of(tiny_world.load("amy"), "anchor")
    found = continue_documents(
        view, attacked, SEPARATOR, settings, lambda done, total: heard.append((done, total))
    )
    assert found.sampled.shape == (12, 16, TOKENS - PREFIX_TOKENS)
    assert heard == [(4, 12), (8, 12), (12, 12)]
    assert len({tuple(row) for row in found.sampled[0].tolist()}) == 16


@pytest.mark.parametrize("prefix", [0, TOKENS])
def test_there_must_be_a_beginning_and_a_rest(
    tiny_world: tiny.World, attacked: np.ndarray, prefix: int
) -> None:
    view = view_of(tiny_world.load("amy"), "anchor")
    with pytest.raises(ConfigError, match="shown"):
        continue_documents(view, attacked, SEPARATOR, replace(SETTINGS, prefix_tokens=prefix))


def test_excess_is_over_the_same_documents() -> None:
    hard = np.arange(200) % 10 == 0
    more = hard | (np.arange(200) % 20 == 1)
    runs = np.arange(200)
    mine, theirs = ExtractionResults(more, hard, runs), ExtractionResults(hard, hard, runs)
    found = extraction_of(mine, theirs)
    assert found.excess is not None
    assert found.excess.value == pytest.approx(0.05)
    assert 0.01 < found.excess.low < 0.05 < found.excess.high < 0.1
    assert (found.extracted.value, found.verbatim.value) == pytest.approx((0.15, 0.1))
    assert (found.longest_run, found.mean_run.value) == (199, pytest.approx(99.5))
    same = extraction_of(theirs, theirs).excess
    assert same is not None
    # As far as 200 documents can tell, of whom none differs.
    assert (same.value, -same.low, same.high) == pytest.approx((0, 0.018275, 0.018275), abs=1e-6)
    assert extraction_of(theirs, None).excess is None


def test_of_the_first_documents_the_same_is_told() -> None:
    found = ExtractionResults(np.array([True, False, True]), np.zeros(3, bool), np.array([9, 1, 4]))
    told = extraction_of(found.first(2), None)
    assert (told.documents, told.extracted.value, told.longest_run) == (2, 0.5, 9)
    assert told.mean_run.value == 5

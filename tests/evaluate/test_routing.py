"""Where the router sends what, against routers computed by hand, position by position."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.evaluate import Question, evaluate, routing
from moiety.evaluate.routing import RoutingWatch, most_used_pair, place_names, show_token

OWNERS = ("amy", "bob", "cat")
NAMES = ("anchor", *OWNERS)
WINDOW = 60


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Short documents of two languages, less than a window each, and a long one of amy's."""
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for number, name in enumerate(("public", "amy")):
        found[name] = list(tiny.language(number, 5, words=12))
        found[name] += tiny.language(9, number, words=120)
        lines = [json.dumps({"text": text}) for text in found[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder, found


def weights_by_hand(world, mixture, document, top_k):
    """(tokens read, the last of them, weight of each expert) at every position of a document.

    Every window begins anew.
    """
    ids = mixture.tokenizer(document)["input_ids"]
    for position, token in enumerate(ids):
        read = ids[position // WINDOW * WINDOW : position + 1]
        said = [[float(world.table(owner)[t]) for t in read] for owner in NAMES]
        logits = [sum(one) * 16 / (len(one) + 16) for one in said]
        weights = torch.tensor(logits).softmax(0)
        kept = weights >= weights.sort(descending=True).values[top_k - 1]
        yield len(read), token, (weights * kept).tolist()


def place_by_hand(read):
    return 0 if read <= 8 else 1 if read <= 32 else 2 if read <= 128 else 3


@pytest.mark.parametrize("top_k", [None, 2, 3])
def test_every_number_is_that_of_routers_computed_by_hand(tiny_world, texts, top_k, monkeypatch):
    monkeypatch.setattr(routing, "TOKEN_TIMES_MIN", 3)
    folder, written = texts
    release = tiny_world.release(*OWNERS)
    paths = {name: [str(folder / f"{name}.jsonl")] for name in written}
    found = evaluate(Question(release, paths, window_tokens=WINDOW, top_k=top_k))
    mixture = tiny_world.load(*OWNERS)
    mixture.routing.top_k = top_k or 4
    by_token, times, homes = {}, Counter(), {}
    for name, documents in written.items():
        sums, together, positions = {}, Counter(), 0
        for document in documents:
            every = weights_by_hand(tiny_world, mixture, document, top_k or 4)
            for read, token, weights in every:
                positions += 1
                times[token] += 1
                homes.setdefault(token, set()).add(document)
                for slot, weight in enumerate(weights):
                    sums.setdefault(place_by_hand(read), [0.0] * 4)[slot] += weight
                    by_token.setdefault(token, [0.0] * 4)[slot] += weight
                    for other, second in enumerate(weights):
                        both = weight > routing.USED_WEIGHT and second > routing.USED_WEIGHT
                        together[slot, other] += both
        for slot, expert in enumerate(NAMES):
            shares = [sums[place][slot] / sum(sums[place]) for place in sorted(sums)]
            assert found.routing_by_place[name][expert] == pytest.approx(shares, abs=1e-5)
            for other, second in enumerate(NAMES):
                expected = together[slot, other] / positions
                assert found.used_together[name][expert][second] == pytest.approx(expected)
    assert found.routing_places == ("1 to 8", "9 to 32", "33 to 128")
    assert [len(found.routing_by_place[name]["amy"]) for name in written] == [2, 3]
    check_tokens(found, mixture, by_token, times, homes)


def check_tokens(found, mixture, by_token, times, homes):
    everything = [sum(row[slot] for row in by_token.values()) for slot in range(4)]
    for slot, expert in enumerate(NAMES):
        mean = everything[slot] / sum(everything)
        excess = {
            token: row[slot] / sum(row) - mean
            for token, row in by_token.items()
            if times[token] >= 3 and len(homes[token]) >= 3 and token != 0
        }
        best = sorted((e for e in excess.values() if e > 0), reverse=True)[:12]
        assert [one.excess for one in found.tokens_taken[expert]] == pytest.approx(best, abs=1e-5)
        for one in found.tokens_taken[expert]:
            ids = [t for t in excess if mixture.tokenizer.decode([t]) == one.token]
            match = [t for t in ids if abs(excess[t] - one.excess) < 1e-5]
            assert [times[t] for t in match] == [one.times]
            assert one.share == pytest.approx(one.excess + mean)
    assert any(found.tokens_taken.values())


def test_windows_no_longer_than_the_first_place_have_no_other(tiny_world, texts):
    """Evidence begins anew in every window, so nothing further on is ever read."""
    folder, written = texts
    paths = {name: [str(folder / f"{name}.jsonl")] for name in written}
    found = evaluate(Question(tiny_world.release("amy"), paths, window_tokens=8))
    assert found.routing_places == ("1 to 8",)
    for name, shares in found.routing.items():
        assert found.routing_by_place[name] == {
            expert: pytest.approx((share,)) for expert, share in shares.items()
        }


def test_places_end_where_their_names_say(tiny_world):
    """Windows of 200 tokens, where the expert that has all the weight changes with the place."""
    mixture = tiny_world.load(*OWNERS)
    assert place_names() == ("1 to 8", "9 to 32", "33 to 128", "129 on")
    weights = torch.zeros(2, 200, 4)
    for position in range(200):
        weights[:, position, place_by_hand(position + 1)] = 1.0
    weights[1, 150:] = 0.0
    watch = RoutingWatch(mixture)
    tokens = tiny.random_tokens(2, 201).numpy()
    documents = np.array([[0] * 201, [1] * 150 + [-1] * 51])
    watch.expect(SimpleNamespace(tokens=tokens, documents=documents))
    watch.see(weights)
    one = torch.eye(4).tolist()
    assert watch.by_place() == {name: tuple(one[slot]) for slot, name in enumerate(NAMES)}
    lengths = {"anchor": 16, "amy": 48, "bob": 192, "cat": 72 + 22}
    assert watch.shares() == {name: n / sum(lengths.values()) for name, n in lengths.items()}


def test_watching_costs_no_number(tiny_world, texts):
    """Told or not, the weights are the same, and nobody watches afterwards."""
    mixture = tiny_world.load(*OWNERS)
    tokens = tiny.random_tokens(2, 12)
    expected = tiny.logits_of(mixture, tokens)
    seen = []
    with mixture.watching(seen.append) as shares:
        assert torch.equal(tiny.logits_of(mixture, tokens), expected)
    assert [weights.shape for weights in seen] == [(2, 12, 4)], "told once, not in every layer"
    assert float(shares.sum()) == pytest.approx(2 * 12)
    tiny.logits_of(mixture, tokens)
    assert len(seen) == 1


def test_a_token_that_only_one_document_has_is_nobodys(tiny_world, tmp_path):
    """However often: such a token tells what the document is about."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "zq " * 60}) + "\n" + '{"text": "ba"}\n')
    release = tiny_world.release("amy")
    found = evaluate(Question(release, {"amy": [str(tmp_path / "a.jsonl")]}))
    assert found.texts[0].tokens > 60
    assert found.tokens_taken == {"anchor": (), "amy": ()}


def test_the_pair_used_most_is_told_whatever_the_order():
    rows = {"a": {"a": 1.0, "b": 0.1, "c": 0.2}, "b": {"a": 0.1, "b": 1.0, "c": 0.7}}
    rows["c"] = {"a": 0.2, "b": 0.7, "c": 0.9}
    assert most_used_pair(rows) == ("b", "c")
    assert most_used_pair({"a": {"a": 1.0}}) is None


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" patient", "·patient"), ("\n\n", "⏎⏎"), ("\t", "⇥"), ("\x1b[2J", "�[2J"), ("‮x", "�x")],
)
def test_a_token_shows_its_spaces_and_moves_nothing(token, shown):
    assert show_token(token) == shown

"""Where the router sends what, against routers computed by hand, position by position."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from tests import tiny

from moiety.evaluate import Question, evaluate, routing
from moiety.evaluate.routing import most_used_pair, show_token

OWNERS = ("amy", "bob", "cat")
NAMES = ("anchor", *OWNERS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Short documents of two languages: less than a window each."""
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for number, name in enumerate(("public", "amy")):
        found[name] = list(tiny.language(number, 5, words=12))
        lines = [json.dumps({"text": text}) for text in found[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder, found


def weights_by_hand(world, mixture, document, top_k):
    """(token id, layer, weight of each expert) at every input position of a document alone."""
    ids = mixture.tokenizer(document)["input_ids"]
    for place, token in enumerate(ids):
        said = [[float(world.table(owner)[t]) for t in ids[: place + 1]] for owner in NAMES]
        logits = [sum(one) * 16 / (len(one) + 16) for one in said]
        weights = torch.tensor(logits).softmax(0)
        kept = weights >= weights.sort(descending=True).values[top_k - 1]
        for layer in range(tiny.LAYERS):
            yield token, layer, (weights * kept).tolist()


@pytest.mark.parametrize("top_k", [None, 2, 3])
def test_every_number_is_that_of_routers_computed_by_hand(tiny_world, texts, top_k, monkeypatch):
    monkeypatch.setattr(routing, "TOKEN_TIMES_MIN", 3)
    folder, written = texts
    release = tiny_world.release(*OWNERS)
    paths = {name: [str(folder / f"{name}.jsonl")] for name in written}
    found = evaluate(Question(release, paths, window_tokens=100, top_k=top_k))
    mixture = tiny_world.load(*OWNERS)
    mixture.routing.top_k = top_k or 4
    by_token, times, homes = {}, Counter(), {}
    for name, documents in written.items():
        sums = [[0.0] * 4 for _ in range(tiny.LAYERS)]
        together, positions = Counter(), 0
        for document in documents:
            every = weights_by_hand(tiny_world, mixture, document, top_k or 4)
            for token, layer, weights in every:
                positions += 1
                times[token] += layer == 0
                homes.setdefault(token, set()).add(document)
                for slot, weight in enumerate(weights):
                    sums[layer][slot] += weight
                    by_token.setdefault(token, [0.0] * 4)[slot] += weight
                    for other, second in enumerate(weights):
                        both = weight > routing.USED_WEIGHT and second > routing.USED_WEIGHT
                        together[slot, other] += both
        for slot, expert in enumerate(NAMES):
            shares = [row[slot] / sum(row) for row in sums]
            assert found.routing_by_layer[name][expert] == pytest.approx(shares, abs=1e-5)
            for other, second in enumerate(NAMES):
                expected = together[slot, other] / positions
                assert found.used_together[name][expert][second] == pytest.approx(expected)
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


def test_shares_by_layer_and_the_whole_share_agree(tiny_world, texts):
    folder, written = texts
    paths = {name: [str(folder / f"{name}.jsonl")] for name in written}
    found = evaluate(Question(tiny_world.release("amy"), paths, window_tokens=8))
    for name, shares in found.routing.items():
        layers = found.routing_by_layer[name]
        # nothing is cut off with two experts and k of two, so every layer weighs the same
        for expert, share in shares.items():
            assert sum(layers[expert]) / tiny.LAYERS == pytest.approx(share)
        assert [sum(column) for column in zip(*layers.values(), strict=True)] == pytest.approx(
            [1.0] * tiny.LAYERS
        )


def test_watching_costs_no_number(tiny_world, texts):
    """Told or not, the weights are the same, and nobody watches afterwards."""
    mixture = tiny_world.load(*OWNERS)
    tokens = tiny.random_tokens(2, 12)
    expected = tiny.logits_of(mixture, tokens)
    seen = []
    with mixture.watching(lambda layer, weights: seen.append((layer, weights.shape))) as shares:
        assert torch.equal(tiny.logits_of(mixture, tokens), expected)
    assert seen == [(0, (2, 12, 4)), (1, (2, 12, 4))]
    assert float(shares.sum()) == pytest.approx(2 * 12 * 2)
    tiny.logits_of(mixture, tokens)
    assert len(seen) == 2


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

"""Every cell of the table against documents scored one at a time, without packing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests import tiny

from moiety.data import Sources
from moiety.errors import ConfigError
from moiety.evaluate import Question, attribute, evaluate, matrix


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two short documents of each of two languages: less than a window each."""
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for number, name in enumerate(("public", "amy")):
        found[name] = list(tiny.language(number, 2, words=12))
        lines = [json.dumps({"text": text}) for text in found[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder, found


def bits_per_byte(mixture, texts):
    nats = size = 0.0
    for text in texts:
        ids = torch.tensor([mixture.tokenizer(text)["input_ids"]])
        scores = tiny.logits_of(mixture, ids).double().log_softmax(-1)
        nats -= float(scores[:, :-1].gather(2, ids[:, 1:, None]).sum())
        size += len(text.encode())
    return nats / size / math.log(2)


@pytest.mark.parametrize("owners", [("amy",), ("amy", "bob"), ("amy", "bob", "cat")])
def test_every_cell_is_that_of_documents_scored_alone(tiny_world, texts, owners):
    folder, documents = texts
    release = tiny_world.release(*owners)
    paths = {name: [str(folder / f"{name}.jsonl")] for name in documents}
    found = evaluate(Question(release, paths, window_tokens=100))
    mixture = tiny_world.load(*owners)
    sets = {"anchor": (), "all": owners}
    sets |= {f"anchor+{owner}": (owner,) for owner in owners}
    sets |= {f"all-{owner}": [other for other in owners if other != owner] for owner in owners}
    assert set(found.models) == set(matrix.model_names(owners)) == set(sets)
    for model, chosen in sets.items():
        for name, written in documents.items():
            with mixture.only(*chosen):
                expected = bits_per_byte(mixture, written)
            assert found.bits_per_byte[model][name] == pytest.approx(expected, rel=1e-4)
    for name in documents:
        assert sum(found.routing[name].values()) == pytest.approx(1)
        assert list(found.routing[name]) == mixture.names


def first_bits(mixture, texts, first):
    """Bits per token of documents cut off after some tokens, each scored alone."""
    nats = count = 0
    for text in texts:
        ids = torch.tensor([mixture.tokenizer(text)["input_ids"][: first + 1]])
        scores = tiny.logits_of(mixture, ids).double().log_softmax(-1)
        nats -= float(scores[:, :-1].gather(2, ids[:, 1:, None]).sum())
        count += ids.shape[1] - 1
    return nats / count / math.log(2), count


@pytest.mark.parametrize("window_tokens", [100, 16])
def test_the_first_tokens_are_those_of_documents_cut_off(
    tiny_world, texts, window_tokens, monkeypatch
):
    monkeypatch.setattr(matrix, "BEGINNINGS", (5, 12, 90))
    folder, documents = texts
    documents = {name: documents[name] for name in ("public", "amy")}
    paths = {name: [str(folder / f"{name}.jsonl")] for name in documents}
    release = tiny_world.release("amy", "bob")
    found = evaluate(Question(release, paths, window_tokens=window_tokens))
    mixture = tiny_world.load("amy", "bob")
    sets = {"anchor": (), "anchor+amy": ("amy",), "all": ("amy", "bob"), "all-amy": ("bob",)}
    assert [short.first_tokens for short in found.beginnings] == [5, 12, 90]
    for short in found.beginnings:
        if short.first_tokens > window_tokens:
            continue  # what is beyond a window's end is scored with less before it
        for model, chosen in sets.items():
            for name, written in documents.items():
                with mixture.only(*chosen):
                    expected, count = first_bits(mixture, written, short.first_tokens)
                assert short.bits_per_token[model][name] == pytest.approx(expected, rel=1e-4)
                assert short.tokens[name] == count
        check_gap(short)
    whole = found.beginnings[-1]
    for model, row in found.bits_per_byte.items():
        for fact in found.texts:
            bits = row[fact.name] * fact.bytes
            assert whole.bits_per_token[model][fact.name] * fact.tokens == pytest.approx(bits)


def check_gap(short):
    bits = short.bits_per_token
    anchor = (bits["anchor"]["public"] + bits["anchor"]["amy"]) / 2
    right = (bits["anchor"]["public"] + bits["anchor+amy"]["amy"]) / 2
    every = (bits["all"]["public"] + bits["all"]["amy"]) / 2
    if right < anchor:
        assert short.gap_closed == pytest.approx((anchor - every) / (anchor - right))
    else:
        assert short.gap_closed is None


def test_no_window_is_longer_than_the_model_has_positions(tiny_world, tmp_path):
    """A document of several windows, however long a window was asked for."""
    text = next(tiny.language(1, 1, words=200))
    (tmp_path / "amy.jsonl").write_text(json.dumps({"text": text}) + "\n")
    mixture = tiny_world.load("amy")
    positions = mixture.backbone.config.max_position_embeddings
    ids, nats = mixture.tokenizer(text)["input_ids"], 0.0
    assert len(ids) > 2 * positions
    for at in range(0, len(ids) - 1, positions):
        piece = torch.tensor([ids[at : at + positions + 1]])
        scores = tiny.logits_of(mixture, piece[:, :-1]).double().log_softmax(-1)
        nats -= float(scores.gather(2, piece[:, 1:, None]).sum())
    release, paths = tiny_world.release("amy"), {"amy": [str(tmp_path / "amy.jsonl")]}
    found = evaluate(Question(release, paths, window_tokens=10**9))
    bits = nats / len(text.encode()) / math.log(2)
    assert found.bits_per_byte["all"]["amy"] == pytest.approx(bits, rel=1e-4)
    sources = Sources(paths["amy"])
    far = attribute(release, sources, window_tokens=10**9)
    assert far.shapley == attribute(release, sources, window_tokens=positions).shapley


@pytest.mark.parametrize(
    "odd",
    [{"top_k": 0}, {"top_k": -1}, {"max_tokens": 0}, {"max_tokens": -5}],
)
def test_numbers_that_nothing_can_be_scored_with_are_refused(tiny_world, texts, odd):
    paths = {"public": [str(texts[0] / "public.jsonl")]}
    with pytest.raises(ConfigError) as refused:
        evaluate(Question(tiny_world.release("amy"), paths, **odd))
    assert refused.value.where == next(iter(odd))

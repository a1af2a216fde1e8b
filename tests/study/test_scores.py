"""Samples and cells against documents read and scored one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.data import Skipped, Sources, load_tokenizer
from moiety.errors import FormatError
from moiety.study import Study, read_plan
from moiety.study.methods import rows
from moiety.study.scores import FIRST_TOKENS, load_nats, load_sample, save_nats, take_sample

WINDOW = 16


@pytest.fixture(scope="module")
def texts(desk):
    """Every document of a text, as it is written."""
    path = str(desk / "amy-test.jsonl")
    return path, [document.text for document in Sources([path]).documents(Skipped())]


@pytest.fixture(scope="module")
def sample(desk, texts):
    return take_sample(desk / "anchor", Sources([texts[0]]), window_tokens=WINDOW, max_tokens=10**6)


def test_bytes_of_documents_and_of_their_beginnings(desk, texts, sample):
    tokenizer, _ = load_tokenizer(desk / "anchor")
    assert sample.bytes.tolist() == [len(text.encode()) for text in texts[1]]
    for count in FIRST_TOKENS:
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts[1]]
        begins = [len(tokenizer.decode(some[:count]).encode()) for some in ids]
        assert sample.bytes_first[count].tolist() == begins


def test_nats_of_documents_are_sums_over_their_targets(sample):
    nats = np.random.default_rng(0).random((2, *sample.document.shape))
    for first in (None, *FIRST_TOKENS):
        expected = np.zeros((2, len(sample.bytes)))
        for w, t in zip(*np.nonzero(sample.counted), strict=True):
            if first is None or sample.place[w, t] < first:
                expected[:, sample.document[w, t]] += nats[:, w, t]
        np.testing.assert_allclose(sample.document_nats(nats, first), expected)


def test_every_token_of_a_document_has_its_place_once(sample):
    for number in range(len(sample.bytes)):
        places = sample.place[sample.document == number]
        assert places.tolist() == list(range(len(places)))
    assert (sample.place[~sample.counted] == -1).all()


def test_a_sample_is_whole_documents_within_the_budget(desk, texts):
    tokenizer, _ = load_tokenizer(desk / "anchor")
    some = take_sample(desk / "anchor", Sources([texts[0]]), window_tokens=WINDOW, max_tokens=500)
    targets = some.tokens[:, 1:]
    read = [tokenizer.decode(targets[some.document == n].tolist()) for n in range(len(some.bytes))]
    assert set(read) < set(texts[1])
    assert 400 < int(some.counted.sum()) <= 500


def test_a_cell_is_what_a_model_says_of_each_document_alone(desk, done):
    study = Study(read_plan(desk / "study.toml"), done)
    sample = load_sample(study.sample("bob"))
    scores = sample.document_nats(load_nats(study.cell(0, "moiety-k1", "bob"), sample))
    mixture = tiny.load_release(study.release(0))
    mixture.routing.top_k = 1
    for number in range(len(sample.bytes)):
        in_it = np.unique(np.nonzero(sample.document == number)[0])
        nats = 0.0
        for w in in_it:
            count = int((sample.document[w] == number).sum())
            ids = torch.from_numpy(sample.tokens[w : w + 1, : count + 1])
            logs = tiny.logits_of(mixture, ids).double().log_softmax(-1)
            nats -= float(logs[:, :-1].gather(2, ids[:, 1:, None]).sum())
        assert scores[number] == pytest.approx(nats, rel=1e-4)


def test_rows_made_of_several_models_against_loops(desk, done):
    study = Study(read_plan(desk / "study.toml"), done)
    by_name = {row.name: row for row in rows(("btm-all", "prompt-routing"), ("amy", "bob"), (1,))}
    sample = load_sample(study.sample("amy"))
    names = ("anchor", "dense-whole-amy", "dense-whole-bob")
    nats = np.stack([load_nats(study.cell(0, name, "amy"), sample) for name in names])
    for name, row in by_name.items():
        assert row.models("amy") == names
        found = row.combine(nats, sample.counted)
        for w, t in zip(*np.nonzero(sample.counted), strict=True):
            before = [float(one[w, :t][sample.counted[w, :t]].sum()) for one in nats]
            if name == "btm-all":
                share = [math.exp(min(before) - nat) for nat in before]
                seen = sum(s * math.exp(-one[w, t]) for s, one in zip(share, nats, strict=True))
                expected = -math.log(seen / sum(share))
            else:
                prompt = [float(one[w, :32].sum()) for one in nats]
                expected = nats[prompt.index(min(prompt)) if t >= 32 else 0][w, t]
            assert found[w, t] == pytest.approx(expected, rel=1e-9)


def test_a_file_that_is_no_cell_of_the_sample_is_refused(tmp_path, sample):
    path = tmp_path / "cell.safetensors"
    save_nats(path, np.zeros((3, 4), np.float32))
    with pytest.raises(FormatError, match="nats of shape"):
        load_nats(path, sample)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FormatError, match="cannot be read"):
        load_nats(path, sample)

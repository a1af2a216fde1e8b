"""The public sample and the probe: fair, the same every time, and what they say they are."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from moiety.bundle import anchors
from moiety.data import Skipped, Sources, load_tokenizer, pack_split
from moiety.errors import DataError
from moiety.train import sample
from moiety.train.sample import sample_sources, write_probe, write_sample


def lines_of(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_a_sample_does_not_depend_on_the_order_of_the_text(tmp_path):
    one = tiny.write_text(tmp_path / "one.jsonl", seed=3)
    lines = one.read_text("utf-8").splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(reversed(lines)) + "\n", "utf-8")
    for name, path in (("a", one), ("b", other)):
        write_sample(Sources([str(path)]), tmp_path / name, Skipped())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    texts = sorted(json.loads(line)["text"] for line in lines)
    assert sorted(line["text"] for line in lines_of(tmp_path / "a")) == texts


def test_a_full_sample_keeps_those_with_the_smallest_hashes(tmp_path, monkeypatch):
    text = tiny.write_text(tmp_path / "text.jsonl", seed=3)
    write_sample(Sources([str(text)]), tmp_path / "whole", Skipped())
    monkeypatch.setattr(sample, "SAMPLE_MAX_BYTES", 3000)
    write_sample(Sources([str(text)]), tmp_path / "part", Skipped())
    whole, part = lines_of(tmp_path / "whole"), lines_of(tmp_path / "part")
    assert part == whole[: len(part)]
    size = len(gzip.decompress((tmp_path / "part").read_bytes()))
    assert size <= 3000 < size + max(len(json.dumps(line)) for line in whole)


def test_a_document_larger_than_the_sample_is_still_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE_MAX_BYTES", 10)
    text = tiny.write_text(tmp_path / "text.jsonl", seed=3)
    write_sample(Sources([str(text)]), tmp_path / "part", Skipped())
    assert len(lines_of(tmp_path / "part")) == 1


def test_no_text_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError):
        write_sample(Sources([str(tmp_path / "empty.jsonl")]), tmp_path / "out", Skipped())


def test_a_sampled_document_stays_on_its_side_of_the_split(tiny_anchor, tmp_path):
    """Whoever trains on the sample must hold out what the anchor's maker held out."""
    public = tiny.write_text(tmp_path / "public.jsonl", seed=0)
    tokenizer, separator = load_tokenizer(tiny_anchor)
    sides = []
    for number, source in enumerate((Sources([str(public)]), sample_sources(tiny_anchor))):
        _, heldout = pack_split(
            source.documents(Skipped()),
            tokenizer,
            tmp_path / str(number),
            window_tokens=32,
            separator=separator,
        )
        sides.append(sorted(heldout.document_tokens.tolist()))
    assert sides[0] == sides[1]


@pytest.fixture(scope="module")
def probed(tiny_anchor, tmp_path_factory):
    """An aligned public text, and two probes of it."""
    folder = tmp_path_factory.mktemp("probed")
    tokenizer, separator = load_tokenizer(tiny_anchor)
    _, text = pack_split(
        sample_sources(tiny_anchor).documents(Skipped()),
        tokenizer,
        folder / "text",
        window_tokens=64,
        separator=separator,
        heldout_fraction=0.4,
    )
    for name in ("one", "two"):
        write_probe(text, folder / name)
    return text, folder / "one", folder / "two"


def test_the_probe_is_tokens_alone_and_comes_again(probed):
    _, one, two = probed
    assert one.read_bytes() == two.read_bytes()
    assert set(load_file(one)) == {anchors.TOKENS}


def test_the_probe_holds_the_beginnings_of_public_documents(probed):
    text, one, _ = probed
    beginnings = set()
    for document in range(text.num_documents):
        window = text.windows([text.windows_of(np.array([document]))[0]])
        inside = (window.documents[0, :64] == document).tolist()
        assert inside == sorted(inside, reverse=True), "an aligned document begins its window"
        kept = [t if real else -1 for t, real in zip(window.tokens[0], inside, strict=False)]
        beginnings.add(tuple(map(int, kept)))
    tokens = load_file(one)[anchors.TOKENS]
    assert tokens.dtype == torch.int32
    found = [tuple(row) for row in tokens.tolist()]
    assert len(found) == len(set(found)) == min(text.num_documents, sample._WINDOWS)
    assert set(found) <= beginnings
    assert {row[0] for row in found} == {text.separator}
    assert (tokens < 0).any(), "some document must end early for this to say anything"

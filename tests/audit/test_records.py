"""Documents are drawn by record, whatever the order of the files and however much one wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moiety.audit.records import choose_documents, choose_passages
from moiety.data import load_tokenizer
from moiety.data.documents import Document
from moiety.data.tokenizer import PlainEncoder
from moiety.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tiny_anchor: Path):
    return load_tokenizer(tiny_anchor)[0]


@pytest.fixture(scope="module")
def encoder(tiny_anchor: Path) -> PlainEncoder:
    return PlainEncoder(*load_tokenizer(tiny_anchor))


def note(record: str, number: int = 0, words: int = 40) -> Document:
    return Document(f"{record} {number} " + "bado keli mu ra " * words, record, "x")


def test_a_record_of_a_thousand_documents_is_no_likelier(encoder: PlainEncoder) -> None:
    short = [note(f"r{n}", words=4) for n in range(9)]
    long = [note("many", number, words=4) for number in range(1000)]
    (first,) = encoder.encode([note("many", words=4)])
    wins = 0
    for seed in range(200):
        chosen = choose_documents([*long, *short], encoder, count=1, tokens=10, seed=seed)
        assert chosen.records == 10
        wins += _is_from("many", chosen.tokens, encoder, seed, [*long, *short])
    assert 8 <= wins <= 36  # 20 expected, four standard deviations either way
    assert first.size >= 10


def _is_from(
    record: str, tokens: np.ndarray, encoder: PlainEncoder, seed: int, notes: list[Document]
) -> bool:
    """Without the record another is drawn, if and only if it was the one that was drawn."""
    rest = [one for one in notes if one.record != record]
    again = choose_documents(rest, encoder, count=1, tokens=10, seed=seed)
    return not np.array_equal(tokens, again.tokens)


def test_the_order_of_the_files_does_not_matter(encoder: PlainEncoder, tokenizer) -> None:
    notes = [note(f"r{n % 30}", n) for n in range(100)]
    turned = [notes[n] for n in np.random.default_rng(0).permutation(len(notes))]
    for some in (notes, turned):
        chosen = choose_documents(some, encoder, count=7, tokens=24, seed=3)
        passages = choose_passages(some, encoder, tokenizer, count=7, tokens=24, seed=3)
        if some is notes:
            before = (chosen.tokens, [one.text for one in passages])
    assert np.array_equal(chosen.tokens, before[0])
    assert [one.text for one in passages] == before[1]
    assert chosen.records == 30


def test_one_document_a_record_and_only_long_ones(encoder: PlainEncoder) -> None:
    notes = [note(f"r{n % 5}", n, words=1 + 3 * (n % 3)) for n in range(60)]
    chosen = choose_documents(notes, encoder, count=50, tokens=60, seed=0)
    assert chosen.tokens.shape == (5, 60)
    whole = [[int(t) for t in ids] for ids in encoder.encode(notes) if ids.size >= 60]
    for row in chosen.tokens.tolist():
        assert any(row == ids[at : at + 60] for ids in whole for at in range(len(ids) - 59))
    assert len({tuple(row[:10]) for row in chosen.tokens.tolist()}) > 1  # not all from one place
    with pytest.raises(DataError, match="5 records"):
        choose_documents(notes, encoder, count=3, tokens=100_000, seed=0)


def test_a_passage_is_a_beginning_and_its_very_text(encoder: PlainEncoder, tokenizer) -> None:
    notes = [note("one", words=30), note("two", words=2), Document("too short", "three", "x")]
    passages = choose_passages(notes, encoder, tokenizer, count=9, tokens=64, seed=0)
    by_start = {one.text[:3]: one for one in passages}
    assert len(passages) == 2
    assert by_start[b"one"].tokens.size == 64
    assert by_start[b"two"].text.decode() == notes[1].text
    (ids,) = encoder.encode([notes[0]])
    assert np.array_equal(by_start[b"one"].tokens, ids[:64])
    assert notes[0].text.encode().startswith(by_start[b"one"].text)

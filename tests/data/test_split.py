"""Which record is held out depends on its name alone, and no record lies on both sides."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moiety.data import PackedText, pack_split, pack_text
from moiety.data.documents import Document
from moiety.errors import ConfigError, DataError

RECORDS = st.lists(st.integers(0, 9).map(str), min_size=1, max_size=25)


def hash_number(record: str) -> float:
    return int(hashlib.sha256(record.encode()).hexdigest()[:16], 16) / 2**64


def documents_of(records: list[str]) -> list[Document]:
    return [Document(f"text {n} of {r}", r, f"a:{n}") for n, r in enumerate(records)]


def texts_in(packed: PackedText, tokenizer: Tokenizer) -> list[str]:
    windows = packed.windows(range(packed.num_windows))
    tokens: list[list[int]] = [[] for _ in range(packed.num_documents)]
    for row, owners in zip(windows.tokens[:, :-1], windows.documents[:, :-1], strict=True):
        for token, owner in zip(row.tolist(), owners.tolist(), strict=True):
            if owner >= 0 and token != 0:
                tokens[owner].append(token)
    return [tokenizer.decode(ids) for ids in tokens]


def split(documents: Any, tokenizer: Tokenizer, folder: Path, **options: Any) -> Any:
    return pack_split(documents, tokenizer, folder, window_tokens=4, separator=0, **options)


def test_the_held_out_share_is_about_the_fraction_asked_for(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = documents_of([f"patient-{n}" for n in range(5_000)])
    aside = {}
    for fraction in (0.05, 0.5):
        _, heldout = split(
            documents, tokenizer, tmp_path / str(fraction), heldout_fraction=fraction
        )
        aside[fraction] = set(texts_in(heldout, tokenizer))
        assert abs(heldout.num_documents / len(documents) - fraction) < 0.02
    assert aside[0.05] < aside[0.5]


@settings(deadline=None, max_examples=40)
@given(records=RECORDS, fraction=st.sampled_from([1e-9, 0.05, 0.3, 0.7, 1 - 1e-9]))
def test_each_side_holds_the_documents_of_its_records(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    records: list[str],
    fraction: float,
) -> None:
    documents = documents_of(records)
    folder = tmp_path_factory.mktemp("split") / "text"
    ranked = sorted(set(records), key=hash_number)
    if len(ranked) == 1:
        with pytest.raises(DataError, match="one record"):
            split(documents, tokenizer, folder, heldout_fraction=fraction)
        assert not folder.exists()
        return
    below = sum(hash_number(record) < fraction for record in ranked)
    held = set(ranked[: min(max(below, 1), len(ranked) - 1)])
    train, heldout = split(documents, tokenizer, folder, heldout_fraction=fraction)
    assert (train.align, heldout.align) == (False, True)
    assert texts_in(train, tokenizer) == [d.text for d in documents if d.record not in held]
    assert texts_in(heldout, tokenizer) == [d.text for d in documents if d.record in held]
    assert (train.num_records, heldout.num_records) == (len(ranked) - len(held), len(held))
    assert sorted(path.name for path in folder.iterdir()) == ["heldout", "train"]


def test_each_side_is_byte_for_byte_what_it_would_be_alone(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    # One corpus splits by itself, in the other all are below the border and one has to move.
    for fraction in (0.4, 1 - 1e-9):
        documents = documents_of([str(n % 9) for n in range(50)])
        base = tmp_path / str(fraction)
        _, heldout = split(documents, tokenizer, base / "both", heldout_fraction=fraction)
        names = sorted({d.record for d in documents}, key=hash_number)
        held = set(names[: heldout.num_records])
        for name, align in (("train", False), ("heldout", True)):
            alone = [d for d in documents if (d.record in held) == align]
            pack_text(alone, tokenizer, base / name, window_tokens=4, separator=0, align=align)
            for path in (base / name).iterdir():
                assert path.read_bytes() == (base / "both" / name / path.name).read_bytes()


def test_the_split_does_not_depend_on_the_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    documents = documents_of([str(n % 40) for n in range(100)])
    shuffled = random.Random(1).sample(documents, len(documents))
    sides = [
        [sorted(texts_in(side, tokenizer)) for side in split(order, tokenizer, tmp_path / name)]
        for order, name in ((documents, "a"), (shuffled, "b"))
    ]
    assert sides[0] == sides[1]
    assert all(sides[0])


def test_copies_of_a_text_never_lie_on_both_sides(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from moiety.data.reading import read_documents

    for n in range(60):
        (tmp_path / f"{n:02}.txt").write_text(f"note {n % 20}")
    documents = read_documents([tmp_path])
    train, heldout = split(documents, tokenizer, tmp_path / "t", heldout_fraction=0.3)
    assert not set(texts_in(train, tokenizer)) & set(texts_in(heldout, tokenizer))
    assert (train.num_records + heldout.num_records, train.num_documents % 3) == (20, 0)


def test_what_cannot_be_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "t"
    with pytest.raises(DataError, match="one record") as caught:
        split([Document("a b c d e", "r", "a.txt:1")] * 3, tokenizer, folder)
    assert caught.value.where == "a.txt:1"
    assert "--heldout" in str(caught.value.remedy)
    with pytest.raises(DataError, match="no document"):
        split([], tokenizer, folder)
    tiny = [Document("a", "p", "a:1"), Document("b", "q", "a:2")]
    with pytest.raises(DataError, match="need 100"):
        pack_split(tiny, tokenizer, folder, window_tokens=99, separator=0)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="fraction"):
            split(tiny, tokenizer, folder, heldout_fraction=fraction)
    assert list(tmp_path.iterdir()) == []

"""Windows give back exactly the tokens of the documents, in both layouts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moiety.data import PackedText, pack_text
from moiety.data.documents import Document
from moiety.errors import ConfigError, DataError, FormatError, StateError

TEXTS = st.text(alphabet="ab é\n1<|endoftext|>", min_size=1, max_size=40)
DOCUMENTS = st.lists(
    st.builds(Document, TEXTS, st.sampled_from("pqrs"), st.just("a.jsonl:1")),
    min_size=1,
    max_size=12,
)


def plain_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The oracle: one text at a time, special tokens taken as their characters."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    ids: list[int] = copy.encode(text, add_special_tokens=False).ids
    return ids


def expected_stream(
    documents: list[list[int]], window_tokens: int, align: bool
) -> tuple[list[int], list[int]]:
    """The oracle: the token stream, and whose token each is, by the plainest loop."""
    tokens: list[int] = []
    owners: list[int] = []
    for index, ids in enumerate(documents):
        tokens += [0, *ids]
        owners += [index] * (len(ids) + 1)
        while align and len(tokens) % window_tokens:
            tokens.append(0)
            owners.append(-1)
    if not align:
        tokens.append(0)
        owners.append(-1)
    return tokens, owners


def pack(
    documents: list[Document], tokenizer: Tokenizer, folder: Path, **options: Any
) -> PackedText:
    return pack_text(documents, tokenizer, folder, separator=0, **options)


@settings(deadline=None, max_examples=50)
@given(documents=DOCUMENTS, window_tokens=st.integers(1, 20), align=st.booleans())
def test_windows_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[Document],
    window_tokens: int,
    align: bool,
) -> None:
    ids = [plain_tokens(tokenizer, document.text) for document in documents]
    tokens, owners = expected_stream(ids, window_tokens, align)
    folder = tmp_path_factory.mktemp("pack") / "text"
    if not align and len(tokens) < window_tokens + 1:
        with pytest.raises(DataError, match="one window"):
            pack(documents, tokenizer, folder, window_tokens=window_tokens, align=align)
        return
    packed = pack(documents, tokenizer, folder, window_tokens=window_tokens, align=align)
    windows = packed.windows(np.arange(packed.num_windows))
    starts = range(0, len(tokens) - (not align), window_tokens)
    pad = window_tokens + 1
    assert windows.tokens.tolist() == [
        (tokens + [0] * pad)[start : start + window_tokens + 1] for start in starts
    ]
    assert windows.documents.tolist() == [
        (owners + [-1] * pad)[start : start + window_tokens + 1] for start in starts
    ]
    assert packed.num_tokens == sum(map(len, ids))
    names = sorted({d.record for d in documents}, key=lambda r: hashlib.sha256(r.encode()).digest())
    assert packed.document_records.tolist() == [names.index(d.record) for d in documents]
    assert packed.window_records(np.arange(packed.num_windows)) == [
        {names.index(documents[owner].record) for owner in row if owner >= 0}
        for row in windows.documents.tolist()
    ]


@settings(deadline=None, max_examples=50)
@given(
    documents=DOCUMENTS,
    window_tokens=st.integers(1, 20),
    align=st.booleans(),
    least=st.integers(1, 4),
    block=st.sampled_from([1, 3, 512]),
)
def test_tokens_are_counted_as_a_counter_counts_them(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[Document],
    window_tokens: int,
    align: bool,
    least: int,
    block: int,
) -> None:
    documents = [*documents, Document("a long enough text", "p", "")]
    folder = tmp_path_factory.mktemp("pack") / "text"
    text = pack(documents, tokenizer, folder, window_tokens=window_tokens, align=align)
    ids = [plain_tokens(tokenizer, document.text) for document in documents]
    expected = Counter(token for tokens in ids for token in tokens)
    for token in list(expected):
        holders = {d.record for d, tokens in zip(documents, ids, strict=True) if token in tokens}
        if len(holders) < least:
            del expected[token]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moiety.data.packed._COUNTED_WINDOWS", block)
        counts = text.token_counts(tokenizer.get_vocab_size(), least)
    assert {token: n for token, n in enumerate(counts.tolist()) if n} == dict(expected)


@settings(deadline=None, max_examples=30)
@given(documents=DOCUMENTS, window_tokens=st.integers(1, 9), align=st.booleans())
def test_every_document_comes_back_whole_and_is_scored_once(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[Document],
    window_tokens: int,
    align: bool,
) -> None:
    long = Document("a long enough text", "p", "")
    folder = tmp_path_factory.mktemp("pack") / "text"
    packed = pack([*documents, long], tokenizer, folder, window_tokens=window_tokens, align=align)
    windows = packed.windows(range(packed.num_windows))
    targets: list[list[int]] = [[] for _ in range(packed.num_documents)]
    for tokens, owners in zip(windows.tokens.tolist(), windows.documents.tolist(), strict=True):
        if align:
            assert len({owner for owner in owners[:-1] if owner >= 0}) == 1
        for step in range(window_tokens):
            if owners[step] >= 0 and owners[step] == owners[step + 1]:
                targets[owners[step]].append(tokens[step + 1])
    assert targets == [plain_tokens(tokenizer, d.text) for d in [*documents, long]]
    sizes = [len(d.text.encode()) for d in [*documents, long]]
    assert packed.document_bytes.tolist() == sizes
    assert packed.num_bytes == sum(sizes)


def test_windows_come_in_the_order_asked_for(tmp_path: Path, tokenizer: Tokenizer) -> None:
    packed = pack(
        [Document("words " * 30, "r", "")], tokenizer, tmp_path / "t", window_tokens=4, align=False
    )
    everything = packed.windows(np.arange(packed.num_windows))
    some = packed.windows([3, 0, 3])
    assert some.tokens.tolist() == everything.tokens[[3, 0, 3]].tolist()
    assert some.tokens.dtype == some.documents.dtype == np.int64
    for outside in ([-1], [packed.num_windows]):
        with pytest.raises(IndexError):
            packed.windows(outside)


def test_many_small_documents_and_progress_across_batches(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = [Document(f"text {n} é", str(n % 100), "") for n in range(2500)]
    heard: list[int] = []
    packed = pack(
        documents, tokenizer, tmp_path / "t", window_tokens=16, align=True, progress=heard.append
    )
    assert heard == sorted(heard)
    assert heard[-1] == packed.num_bytes == sum(len(d.text.encode()) for d in documents)
    assert len(heard) == 3
    assert (packed.num_documents, packed.num_records) == (2500, 100)
    assert packed.num_windows == 2500


def test_what_is_written_is_the_same_twice_and_opens_again(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    documents = [Document("some text here", "p", ""), Document("and there", "q", "")]
    for name in ("a", "b"):
        pack(documents, tokenizer, tmp_path / name, window_tokens=4, align=False)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "bytes.bin", "ends.bin", "packed.json", "records.bin", "starts.bin", "tokens.bin"
    ]  # fmt: skip
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = PackedText.open(tmp_path / "a")
    assert again.num_documents == 2
    assert (again.window_tokens, again.align, again.separator) == (4, False, 0)


def test_nothing_or_too_little_leaves_no_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "t"
    short = [Document("a", "r", "a.txt:1")]
    with pytest.raises(DataError, match="no document"):
        pack([], tokenizer, folder, window_tokens=8, align=True)
    with pytest.raises(DataError, match="need 9") as caught:
        pack(short, tokenizer, folder, window_tokens=8, align=False)
    assert caught.value.where == "a.txt:1"
    assert caught.value.remedy
    with pytest.raises(ConfigError, match="windows of 0"):
        pack(short, tokenizer, folder, window_tokens=0, align=False)
    assert list(tmp_path.iterdir()) == []
    packed = pack(short, tokenizer, folder, window_tokens=8, align=True)
    assert packed.num_windows == 1
    with pytest.raises(StateError, match="exists already"):
        pack(short, tokenizer, folder, window_tokens=8, align=True)


def test_an_interrupted_packing_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    def interrupted() -> Any:
        yield from (Document("text", "r", "") for _ in range(2000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(interrupted(), tokenizer, tmp_path / "t", window_tokens=8, align=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "t"
    pack([Document("text", "r", "")], tokenizer, folder, window_tokens=8, align=True)
    paper = json.loads((folder / "packed.json").read_bytes())
    damaged = [
        paper | {"format": "moiety.packed/2"},
        paper | {"documents": 2},
        paper | {"dtype": "uint32"},
        paper | {"window_tokens": 0},
        paper | {"window_tokens": "8"},
        paper | {"more": 1},
        {key: value for key, value in paper.items() if key != "align"},
        {key: value for key, value in paper.items() if key != "format"},
        [],
    ]
    for value in damaged:
        (folder / "packed.json").write_text(json.dumps(value))
        with pytest.raises(FormatError):
            PackedText.open(folder)
    (folder / "packed.json").unlink()
    with pytest.raises(FormatError):
        PackedText.open(folder)


@settings(deadline=None, max_examples=50)
@given(documents=DOCUMENTS, window_tokens=st.integers(1, 20))
def test_packed_by_record_no_window_mixes_records(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[Document],
    window_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("pack") / "text"
    packed = pack(
        documents, tokenizer, folder, window_tokens=window_tokens, align=False, by_record=True
    )
    names = sorted({d.record for d in documents}, key=lambda r: hashlib.sha256(r.encode()).digest())
    # The oracle: each record's documents after each other, padded to whole windows.
    expected: list[list[int]] = []
    for name in names:
        tokens = [
            t for d in documents if d.record == name for t in (0, *plain_tokens(tokenizer, d.text))
        ]
        expected.append(tokens + [0] * (-len(tokens) % window_tokens))
    first, count = packed.record_windows()
    assert len(first) == packed.num_records == len(names)
    for number, tokens in enumerate(expected):
        windows = packed.windows(np.arange(first[number], first[number] + count[number]))
        assert windows.tokens[:, :-1].flatten().tolist() == tokens
        counted = windows.counted_in(packed.document_records)
        real = windows.documents[:, 1:][counted]
        assert set(packed.document_records[real].tolist()) <= {number}
        texts = [plain_tokens(tokenizer, d.text) for d in documents if d.record == names[number]]
        assert int(counted.sum()) == sum(map(len, texts)) + len(texts) - 1
    whole = [
        t
        for name in names
        for d in documents
        if d.record == name
        for t in plain_tokens(tokenizer, d.text)
    ]
    assert [t for record in packed.record_tokens() for t in record.tolist()] == whole
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            *(f"{name}.bin" for name in ("tokens", "starts", "ends", "bytes", "records")),
            "packed.json",
        ]
    )

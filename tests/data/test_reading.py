"""What is read is what was written, from every kind of file, in a fixed order."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from moiety.data import Skipped
from moiety.data.documents import PIECE_CHARS, cut_pieces
from moiety.data.reading import read_documents
from moiety.data.streams import BLOCK_BYTES
from moiety.errors import DataError

TEXTS = ["one", "zwei ü", "三\n\nlines\r\n", "one"]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_as(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        # Two frames, as `cat a.zst b.zst` makes them.
        half = len(content) // 2
        pack = zstandard.ZstdCompressor().compress
        content = pack(content[:half]) + pack(content[half:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "A.JSONL"])
def test_json_lines_give_texts_and_the_line_each_stands_on(
    tmp_path: Path, name: str, suffix: str
) -> None:
    content = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS)
    path = write_as(tmp_path / (name + suffix), content.encode())
    documents = list(read_documents([path]))
    assert [d.text for d in documents] == TEXTS
    assert [d.where for d in documents] == [f"{path}:{n}" for n in (1, 2, 3, 4)]
    assert [d.record for d in documents] == [sha(text) for text in TEXTS]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.md.zst"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    path = write_as(tmp_path / name, "first\r\n\n  ü last".encode())
    (document,) = read_documents([str(path)])
    assert document.text == "first\r\n\n  ü last"
    assert document.record == sha(document.text)
    assert document.where == f"{path}:1"


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    assert [d.text for d in read_documents([tmp_path])] == ["hello", "hello"]


def test_parquet_gives_texts_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {n}" for n in range(200)]
    table = pyarrow.table(
        {"body": pyarrow.array(texts).dictionary_encode(), "patient": [n % 7 for n in range(200)]}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=90)
    documents = list(read_documents([path], text_field="body", record_key="patient"))
    assert [d.text for d in documents] == texts
    assert [d.record for d in documents] == [str(n % 7) for n in range(200)]
    assert documents[99].where == f"{path} row 100"


def test_records_are_named_by_the_key_and_numbers_equal_their_spelling(
    write_lines: Callable[..., Path],
) -> None:
    path = write_lines(
        [{"note": "x", "who": 7}, {"note": "y", "who": "7"}, {"note": "z", "who": 8}]
    )
    documents = list(read_documents([path], text_field="note", record_key="who"))
    assert [d.record for d in documents] == ["7", "7", "8"]


def test_folders_and_globs_are_read_sorted_and_each_file_once(
    tmp_path: Path, write_lines: Callable[..., Path]
) -> None:
    for name in ("b/2.jsonl", "b/1.jsonl", "a.jsonl", "c/deep/x.jsonl", ".git/hidden.jsonl"):
        write_lines([{"text": name}], name)
    (tmp_path / "c" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "b" / "again.jsonl").symlink_to(tmp_path / "a.jsonl")
    skipped = Skipped()
    sources = [
        tmp_path / "b",
        str(tmp_path / "*.jsonl"),
        str(tmp_path / "**" / "*.jsonl"),
        tmp_path,
    ]
    texts = [d.text for d in read_documents(sources, skipped=skipped)]
    assert texts == ["b/1.jsonl", "b/2.jsonl", "a.jsonl", "c/deep/x.jsonl"]
    assert skipped.totals == {"file of a kind that is not read": 1}


def test_a_file_whose_name_is_a_pattern_is_the_file(write_lines: Callable[..., Path]) -> None:
    path = write_lines([{"text": "x"}], "[a]*.jsonl")
    assert [d.text for d in read_documents([str(path)])] == ["x"]


@given(st.lists(st.text(alphabet="ab \n", max_size=30), max_size=8))
def test_pieces_joined_are_the_text(chunks: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moiety.data.documents.PIECE_CHARS", 10)
        pieces = list(cut_pieces(chunks))
    assert "".join(pieces) == "".join(chunks)
    assert all(0 < len(piece) <= 10 for piece in pieces)


def test_pieces_end_at_blank_lines_where_there_are_any() -> None:
    text = ("word " * 50 + "\n\n") * 12_000
    pieces = list(cut_pieces([text]))
    assert len(pieces) >= len(text) // PIECE_CHARS
    assert all(piece.endswith("\n\n") for piece in pieces)


def test_a_long_text_is_several_documents_of_one_record(tmp_path: Path) -> None:
    text = "".join(f"line {n} ünïcode\n" for n in range(150_000))
    assert len(text.encode()) > 2 * BLOCK_BYTES
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}) + "\n")
    plain = list(read_documents([tmp_path / "a.txt"]))
    lines = list(read_documents([tmp_path / "b.jsonl"]))
    assert [d.text for d in plain] == [d.text for d in lines]
    assert "".join(d.text for d in plain) == text
    assert {d.record for d in plain + lines} == {sha(text)}
    number = int(plain[1].where.rpartition(":")[2])
    assert plain[1].text.startswith(text.split("\n")[number - 1])


def test_a_hub_data_set_is_streamed_row_by_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_lines: Callable[..., Path]
) -> None:
    # `datasets` takes a local folder of that name for the data set: no network.
    write_lines([{"text": "a"}, {"text": "b"}], "owner/name/test.jsonl")
    monkeypatch.chdir(tmp_path)
    documents = list(read_documents(["hf:owner/name@test"]))
    assert [d.text for d in documents] == ["a", "b"]
    assert documents[1].where == "hf:owner/name@test row 2"


def test_a_bare_name_is_the_hub_only_where_no_path_could_be_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from moiety.data.sources import HubText, find_sources

    monkeypatch.chdir(tmp_path)
    assert find_sources(["owner/name"], Skipped()) == [HubText("owner/name", "train")]
    assert find_sources(["owner/name@a"], Skipped()) == [HubText("owner/name", "a")]
    (tmp_path / "texts").mkdir()
    for mistyped in ("texts/nothing", "txets/notes.txt", "a/b/c", "notes", "./owner/name"):
        with pytest.raises(DataError, match="no such file"):
            find_sources([mistyped], Skipped())
    with pytest.raises(DataError, match="no such file"):
        find_sources([Path("owner/name")], Skipped())


def test_an_unreachable_hub_is_an_error_even_when_bad_text_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    code = (
        "from moiety.data.reading import read_documents\n"
        "from moiety.errors import DataError\n"
        "try: list(read_documents(['good.txt', 'hf:no-such/thing'], skip_bad=True))\n"
        "except DataError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be read from the hub [hf:no-such/thing@train row 1]" in result.stdout


def test_reading_imports_neither_torch_nor_datasets_nor_pyarrow() -> None:
    code = "import moiety.data, sys; print(sorted({'torch','datasets','pyarrow'} & {*sys.modules}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.strip() == "[]"

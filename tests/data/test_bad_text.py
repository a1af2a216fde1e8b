"""Every kind of bad input names its file and line, has a remedy, and is counted when skipped."""

from __future__ import annotations

import gzip
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.data import Skipped
from moiety.data.reading import read_documents
from moiety.errors import DataError

GOOD = {"text": "good", "who": "p1"}

BAD_LINES = {
    "not JSON": b'{"text": "x"',
    "not UTF-8": b'{"text": "\xff"}',
    "not a JSON object": b'["text"]',
    'field "text" is missing': b'{"txt": "x", "who": "p"}',
    'field "text" is a number, not text': b'{"text": 5, "who": "p"}',
    'field "text" is null, not text': b'{"text": null, "who": "p"}',
    'field "text" is a list, not text': b'{"text": ["x"], "who": "p"}',
    'field "who" is missing': b'{"text": "x"}',
    'field "who" is null, it cannot say whose record it is': b'{"text": "x", "who": null}',
    'field "who" is empty, it cannot say whose record it is': b'{"text": "x", "who": ""}',
    'field "who" is true or false, it cannot say whose record it is': b'{"text": "x", "who": true}',
    'field "who" is a number, it cannot say whose record it is': b'{"text": "x", "who": 1.5}',
    "half a surrogate pair, which is not text": rb'{"text": "\ud800", "who": "p"}',
}
ALSO_BAD = {
    "null": (b"null", "not a JSON object"),
    "deep": (b"[" * 100_000, "not JSON"),
    "digits": (b"1" * 5_000, "not JSON"),
    "nothing but a number": (b"17", "not a JSON object"),
}


def read(source: Any, **options: Any) -> list[str]:
    sources = source if isinstance(source, list) else [source]
    return [document.text for document in read_documents(sources, **options)]


def check(error: DataError, message: str, where: str) -> None:
    assert error.message == message
    assert error.where == where
    assert error.remedy


@pytest.mark.parametrize(
    ("line", "message"), [(line, name) for name, line in BAD_LINES.items()] + [*ALSO_BAD.values()]
)
def test_a_bad_line_is_named_or_skipped_and_counted(
    write_lines: Callable[..., Path], line: bytes, message: str
) -> None:
    path = write_lines([GOOD, GOOD, line, GOOD])
    with pytest.raises(DataError) as caught:
        read(path, record_key="who")
    check(caught.value, message, f"{path}:3")
    skipped = Skipped()
    assert read(path, record_key="who", skip_bad=True, skipped=skipped) == ["good"] * 3
    assert skipped.totals == {message: 1}
    assert skipped.summary() == f"1 skipped: 1 {message} (first: {path}:3)"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["good", "blank", "empty", *BAD_LINES]), min_size=1, max_size=30))
def test_documents_read_and_lines_skipped_add_up(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str]
) -> None:
    plain = {"good": json.dumps(GOOD).encode(), "blank": b"  ", "empty": b'{"text": " ", "who": 1}'}
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"".join((plain | BAD_LINES)[kind] + b"\n" for kind in ["good", *kinds]))
    skipped = Skipped()
    texts = read(path, record_key="who", skip_bad=True, skipped=skipped)
    assert len(texts) == 1 + kinds.count("good")
    assert len(texts) + skipped.total == 1 + len(kinds)
    named = {"blank": "blank line", "empty": "empty text"}
    expected = {named.get(kind, kind): kinds.count(kind) for kind in kinds if kind != "good"}
    assert skipped.totals == expected


def test_empty_texts_are_counted_without_being_asked(
    tmp_path: Path, write_lines: Callable[..., Path]
) -> None:
    write_lines([{"text": ""}, GOOD, b"", {"text": "\n "}])
    (tmp_path / "void.txt").touch()
    skipped = Skipped()
    assert read(tmp_path, skipped=skipped) == ["good"]
    assert skipped.totals == {"empty text": 3, "blank line": 1}


def test_a_text_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("fine\nfine ü\nbad ".encode() + b"\xff here\n")
    with pytest.raises(DataError) as caught:
        read(path)
    check(caught.value, "not UTF-8", f"{path}:3")
    path.write_bytes(b"x\n" * 1_000_000 + "ü".encode()[:1])
    with pytest.raises(DataError) as caught:
        read(path)
    check(caught.value, "not UTF-8", f"{path}:1000001")


def test_a_text_file_cannot_say_whose_record_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(DataError) as caught:
        read(path, record_key="who")
    check(caught.value, 'a text file has no field "who" to say whose record it is', f"{path}:1")


@pytest.mark.parametrize("keep", [0.6, 0.99])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_cut_off_file_is_never_taken_for_a_whole_one(
    tmp_path: Path, name: str, suffix: str, keep: float
) -> None:
    lines = [json.dumps({"text": f"{n} {random.random()}"}) for n in range(60_000)]
    content = "\n".join(lines).encode()
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    packed = pack(content)
    path = tmp_path / (name + suffix)
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message == "damaged or cut-off compressed file"
    assert caught.value.remedy
    place, _, line = str(caught.value.where).rpartition(":")
    assert place == str(path)
    assert 0.3 * keep * len(lines) < int(line) < len(lines)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_at_all(tmp_path: Path, suffix: str) -> None:
    good = tmp_path / "z.txt"
    good.write_text("good")
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_text('{"text": "plain"}\n')
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    check(caught.value, "damaged or cut-off compressed file", f"{path}:1")
    skipped = Skipped()
    assert read(tmp_path, skip_bad=True, skipped=skipped) == ["good"]
    assert skipped.totals == {"damaged or cut-off compressed file": 1}


def test_a_line_too_long_is_skipped_without_being_held(
    monkeypatch: pytest.MonkeyPatch, write_lines: Callable[..., Path]
) -> None:
    monkeypatch.setattr("moiety.data.streams.LINE_MAX_BYTES", 1000)
    path = write_lines([GOOD, {"text": "x" * 5_000_000}, GOOD])
    with pytest.raises(DataError, match="a line over") as caught:
        read(path)
    assert caught.value.where == f"{path}:2"
    assert read(path, skip_bad=True) == ["good", "good"]


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_bad_parquet_rows_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None, "", "b"]})
    with pytest.raises(DataError) as caught:
        read(path)
    check(caught.value, 'field "text" is null, not text', f"{path} row 2")
    skipped = Skipped()
    assert read(path, skip_bad=True, skipped=skipped) == ["a", "b"]
    assert skipped.totals == {'field "text" is null, not text': 1, "empty text": 1}


def test_parquet_without_the_field_or_of_another_type(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"body": ["a"], "length": [1]})
    with pytest.raises(DataError) as caught:
        read(path)
    check(caught.value, 'field "text" is missing', f"{path} row 1")
    assert "'body', 'length'" in str(caught.value.remedy)
    with pytest.raises(DataError, match="is a number, not text"):
        read(path, text_field="length")
    with pytest.raises(DataError, match='field "who" is missing'):
        read(path, text_field="body", record_key="who")


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"\xff\xfe"], type=pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.utf8(), 2, raw.buffers())
    path = write_parquet(tmp_path / "a.parquet", {"text": text})
    with pytest.raises(DataError) as caught:
        read(path)
    check(caught.value, "not UTF-8", f"{path} row 2")


@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, -3])
def test_broken_parquet(tmp_path: Path, keep: float) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": [f"text {n}" for n in range(1000)]})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(DataError) as caught:
        read(path)
    check(caught.value, "cannot be read as Parquet", f"{path} row 1")


def test_parquet_damaged_in_the_middle_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {n} {random.random()}" for n in range(5000)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts}), path, row_group_size=1000, compression="zstd"
    )
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message == "cannot be read as Parquet"
    assert int(str(caught.value.where).rpartition(" ")[2]) > 1000


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions do not stop root: become another user for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_says_so(tmp_path: Path) -> None:
    for parent in tmp_path.parents:
        # Let the other user in as far as this test's folder, and nowhere else.
        if Path(tempfile.gettempdir()) in parent.parents:
            parent.chmod(0o711)
    tmp_path.chmod(0o755)
    closed, folder = tmp_path / "a.txt", tmp_path / "folder"
    closed.write_text("x")
    assert read(closed) == ["x"]  # the other user may not be able to import the codec
    (folder / "inner").mkdir(parents=True)
    closed.chmod(0)
    (folder / "inner").chmod(0)
    with as_nobody():
        with pytest.raises(DataError) as caught:
            read(closed)
        check(caught.value, "cannot be read: Permission denied", f"{closed}:1")
        with pytest.raises(DataError) as caught:
            read(folder)
        check(caught.value, "cannot be read: Permission denied", str(folder / "inner"))
        with pytest.raises(DataError, match="permission denied"):
            read(folder / "inner" / "a.txt")
    (folder / "inner").chmod(0o755)


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text was named"):
        read_documents([])
    for missing in ("nothing.txt", "no/such/folder", "a\0b"):
        with pytest.raises(DataError, match="no such file") as caught:
            read_documents([str(tmp_path / missing)])
        assert caught.value.where == str(tmp_path / missing)
    with pytest.raises(DataError, match="no file matches"):
        read_documents([str(tmp_path / "*.jsonl")])
    with pytest.raises(DataError, match="nothing here can be read") as caught:
        read_documents([tmp_path])
    assert ".parquet" in str(caught.value.remedy)
    (tmp_path / "a.pdf").touch()
    for source in (tmp_path, str(tmp_path / "*")):
        with pytest.raises(DataError, match="nothing here can be read"):
            read_documents([source])
    with pytest.raises(DataError, match="not a kind of file") as caught:
        read_documents([tmp_path / "a.pdf"])
    assert ".jsonl" in str(caught.value.remedy)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for source in (tmp_path, tmp_path / "a.txt", str(tmp_path / "*.txt")):
        with pytest.raises(DataError, match="not a plain file"):
            read_documents([source])


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="No such file") as caught:
        read(tmp_path)
    assert caught.value.where == f"{tmp_path / 'a.txt'}:1"


def test_a_corpus_of_which_nothing_is_left(write_lines: Callable[..., Path]) -> None:
    path = write_lines([{"text": ""}, b"nonsense"])
    with pytest.raises(DataError, match="no text") as caught:
        read(path, skip_bad=True)
    assert caught.value.where == str(path)
    assert "1 not JSON" in caught.value.message

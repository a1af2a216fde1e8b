"""Bytes from plain, gzip and zstandard files: as lines, or as decoded text. Never whole files.

Every way a file can fail (permissions, damage, a cut-off end, another encoding) becomes a
``DataError`` that names file and line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from moiety.data.documents import OR_SKIP
from moiety.errors import DataError

LINE_MAX_BYTES = 256 * 2**20
"""A longer line is not JSON lines but something else; it is never held in memory whole."""

BLOCK_BYTES = 2**20

_ZSTD_BLOCK_BYTES = 2**14
"""Small, because what one input block unpacks to is held in memory at once."""

_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


class _ZstdFile(io.RawIOBase):
    """Unpacks a zstandard file of one or more frames.

    Trap: the library's own stream reader ends quietly where a file was cut off; this one raises
    ``EOFError``, as gzip does.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._packed = b""
        self._plain = b""
        self._inside = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._plain:
            self._packed = self._packed or self._file.read(_ZSTD_BLOCK_BYTES)
            if not self._packed:
                if self._inside:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._unpack()
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _unpack(self) -> None:
        self._plain = self._frame.decompress(self._packed)
        self._inside = not self._frame.eof
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = zstandard.ZstdDecompressor().decompressobj()

    def close(self) -> None:
        self._file.close()
        super().close()


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number from 1; ``None`` stands for a line over ``LINE_MAX_BYTES``.

    Raises:
        DataError: the file cannot be opened, or not be read to its end.
    """
    number = 1
    try:
        with _open(path) as stream:
            while line := stream.readline(LINE_MAX_BYTES + 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                whole = len(line) <= LINE_MAX_BYTES
                yield number, line if whole else None
                while not whole:
                    rest = stream.readline(BLOCK_BYTES)
                    whole = not rest or rest.endswith(b"\n")
                number += 1
    except (*_DAMAGE, OSError) as error:
        raise _broken(error, path, number) from error


def read_text(path: Path) -> Iterator[str]:
    """The text of a file in blocks of about a megabyte, as UTF-8, its byte order mark removed.

    Raises:
        DataError: the file cannot be opened, not be read to its end, or is not UTF-8.
    """
    line = 1
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with _open(path) as stream:
            block = stream.read(BLOCK_BYTES)
            while block:
                text = decoder.decode(block)
                yield text
                line += text.count("\n")
                block = stream.read(BLOCK_BYTES)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise not_utf8(f"{path}:{line}") from error
    except (*_DAMAGE, OSError) as error:
        raise _broken(error, path, line) from error


def not_utf8(where: str) -> DataError:
    """The error for bytes in another encoding."""
    return DataError(
        "not UTF-8",
        where=where,
        remedy=f"convert the file (iconv -f LATIN1 -t UTF-8), {OR_SKIP}",
    )


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        stream: io.RawIOBase = cast(io.RawIOBase, gzip.GzipFile(path, "rb"))
    elif suffix == ".zst":
        stream = _ZstdFile(path.open("rb"))
    else:
        return path.open("rb", buffering=BLOCK_BYTES)
    return cast(BinaryIO, io.BufferedReader(stream, BLOCK_BYTES))


def _broken(error: BaseException, path: Path, line: int) -> DataError:
    if isinstance(error, _DAMAGE):
        return DataError(
            "damaged or cut-off compressed file",
            where=f"{path}:{line}",
            remedy=f"copy or download the file again, {OR_SKIP}",
        )
    assert isinstance(error, OSError)
    return DataError(
        f"cannot be read: {error.strerror}",
        where=f"{path}:{line}",
        remedy=f"make the file readable, {OR_SKIP}",
    )

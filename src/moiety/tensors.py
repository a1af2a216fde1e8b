"""safetensors files as byte ranges: read strictly, hashed and streamed without decoding.

The format: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape,
data_offsets}}``, then the tensors' bytes without holes. The ``safetensors`` library decodes
tensors into a framework; verification and merging need the opposite: exact byte ranges, a digest
per tensor, and constant memory. No tensor framework is imported here.

Source: the format page of the safetensors project. We accept a subset: offsets in ascending order
without holes, names sorted in no particular way, header at most 100 MB, data to the end of file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moiety.errors import FormatError, IntegrityError
from moiety.files import FileState, check_regular, file_state, parse_json, settled_state

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
HEADER_MAX_BYTES = 100_000_000
MAX_DIMENSIONS = 8
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class TensorSpan:
    """Where one tensor lies: ``begin`` and ``end`` count bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin


class TensorFile:
    """One safetensors file, opened once and kept open: what was checked is what is read later.

    ``settled`` is the state of the file when it was verified; ``unchanged`` compares with it.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        spans: Mapping[str, TensorSpan],
        settled: FileState | None = None,
    ) -> None:
        self.path = path
        self.spans = dict(spans)
        self.settled = settled
        self._file = file

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file handle back."""
        self._file.close()

    def fileno(self) -> int:
        """The system's number of the open file."""
        return self._file.fileno()

    def unchanged(self) -> bool:
        """Whether every byte is still the one that was there when ``settled`` was taken.

        False also when it cannot be told; whoever copies must look at the bytes then.
        """
        return self.settled is not None and file_state(self.fileno()) == self.settled

    def blocks(self, name: str, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
        """The tensor's bytes in pieces. A piece is valid until the next one is asked for."""
        span = self.spans[name]
        buffer = memoryview(bytearray(min(block_bytes, max(span.num_bytes, 1))))
        at = span.begin
        while at < span.end:
            want = buffer[: min(len(buffer), span.end - at)]
            done = os.preadv(self._file.fileno(), [want], at)
            if done <= 0:
                raise IntegrityError("the file became shorter while it was read", where=self.path)
            yield want[:done]
            at += done

    def read_range(self, name: str, offset: int, num_bytes: int) -> bytearray:
        """Exactly ``num_bytes`` of the tensor, from ``offset`` in it."""
        span = self.spans[name]
        if offset < 0 or num_bytes < 0 or offset + num_bytes > span.num_bytes:
            raise ValueError(f"no bytes {offset}..{offset + num_bytes} in {name}")
        data = bytearray(num_bytes)
        view, at = memoryview(data), 0
        while at < num_bytes:
            done = os.preadv(self._file.fileno(), [view[at:]], span.begin + offset + at)
            if done <= 0:
                raise IntegrityError("the file became shorter while it was read", where=self.path)
            at += done
        return data

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """One whole tensor as float32 (floating dtypes) or as its integer dtype."""
        span = self.spans[name]
        raw = b"".join(bytes(block) for block in self.blocks(name))
        return decode(raw, span.dtype).reshape(span.shape)

    def digest(self, name: str) -> str:
        """SHA-256 of the tensor's bytes."""
        state = hashlib.sha256()
        for block in self.blocks(name):
            state.update(block)
        return state.hexdigest()

    def read_head(self, num_bytes: int) -> bytes:
        """The file's first bytes, through the handle that is open."""
        return os.pread(self._file.fileno(), num_bytes, 0)

    def digest_file(self) -> str:
        """SHA-256 of the whole file, header and all, through the handle that is open."""
        size = os.fstat(self._file.fileno()).st_size
        state, buffer, at = hashlib.sha256(), bytearray(min(size, BLOCK_BYTES) + 1), 0
        while done := os.preadv(self._file.fileno(), [buffer], at):
            state.update(memoryview(buffer)[:done])
            at += done
        return state.hexdigest()


def decode(raw: bytes | bytearray | memoryview, dtype: str) -> np.ndarray[Any, Any]:
    """Bytes to a flat array; every floating dtype comes out as float32 (float64 stays)."""
    if dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4")
    codes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1"}
    flat: np.ndarray[Any, Any] = np.frombuffer(raw, codes.get(dtype, "u1"))
    return flat.astype("<f4") if dtype == "F16" else flat


def encode(array: np.ndarray[Any, Any], dtype: str) -> bytes:
    """Array to bytes of ``dtype``: float32 to ``F32``, ``F16`` or ``BF16`` (to nearest even), or
    whole numbers to ``I32``."""
    if dtype == "I32":
        return array.astype("<i4").tobytes()
    if dtype == "F32":
        return array.astype("<f4").tobytes()
    if dtype == "F16":
        return array.astype("<f2").tobytes()
    if dtype != "BF16":
        raise ValueError(f"no encoding for {dtype}")
    bits = array.astype("<f4").view("<u4")
    halves: np.ndarray[Any, Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return halves.astype("<u2").tobytes()


def open_tensors(
    path: Path,
    max_bytes: int | None = None,
    *,
    max_header_bytes: int = HEADER_MAX_BYTES,
    settle: bool = False,
) -> TensorFile:
    """Opens a safetensors file after checking every byte of its header.

    With ``settle`` its state is taken before the first byte is read, to tell later whether what
    was read is still there.

    Raises:
        FormatError: too large, truncated, holes, overlaps, unknown dtype, absurd shape.
    """
    check_regular(path)
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise FormatError(f"cannot open: {error.strerror}", where=path) from error
    try:
        settled = settled_state(file.fileno()) if settle else None
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise FormatError(f"{size:,} bytes, the limit is {max_bytes:,}", where=path)
        spans = _read_header(file, size, path, max_header_bytes)
    except BaseException:
        file.close()
        raise
    return TensorFile(path, file, spans, settled)


def _read_header(file: Any, size: int, path: Path, max_header_bytes: int) -> dict[str, TensorSpan]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(max_header_bytes, size - 8):
        raise FormatError("header length does not fit the file", where=path)
    raw = file.read(length)
    if len(raw) != length:
        raise FormatError("truncated header", where=path)
    header = parse_json(raw, path)
    if not isinstance(header, dict):
        raise FormatError("the header is not an object", where=path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("metadata is not a table of strings", where=path)
    start = 8 + length
    spans = [_parse_span(name, value, start, path) for name, value in header.items()]
    _check_layout(spans, start, size, path)
    return {span.name: span for span in spans}


def _parse_span(name: str, value: Any, start: int, path: Path) -> TensorSpan:
    where = f"{path}: {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError("a tensor entry needs dtype, shape and data_offsets", where=where)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"dtype not accepted: {str(dtype)[:40]}", where=where)
    for numbers, limit in ((shape, MAX_DIMENSIONS), (offsets, 2)):
        plain = isinstance(numbers, list) and len(numbers) <= limit
        if not plain or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise FormatError("shape or offsets are not small lists of whole numbers", where=where)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        raise FormatError("offsets do not fit the shape", where=where)
    return TensorSpan(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _check_layout(spans: list[TensorSpan], start: int, size: int, path: Path) -> None:
    at = start
    for span in sorted(spans, key=lambda span: (span.begin, span.end)):
        if span.begin != at:
            raise FormatError("a hole or an overlap between tensors", where=f"{path}: {span.name}")
        at = span.end
    if at != size:
        raise FormatError(f"{size - at} bytes belong to no tensor", where=path)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: its bytes come from ``blocks`` when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[bytes | memoryview]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_tensors(path: Path, plans: list[TensorPlan]) -> dict[str, str]:
    """Streams tensors into a new safetensors file, in the order given, in constant memory.

    The header is padded with spaces so that data begins at a multiple of 4096 bytes: equal
    tensors then lie at equal block offsets, which lets file systems share them.

    Returns:
        the SHA-256 of each tensor's bytes, by name.
    """
    header = header_bytes(plans)
    digests: dict[str, str] = {}
    with path.open("wb") as file:
        file.write(header)
        for plan in plans:
            state, done = hashlib.sha256(), 0
            for block in plan.blocks:
                state.update(block)
                file.write(block)
                done += len(block)
            if done != plan.num_bytes:
                raise IntegrityError(f"{done} bytes for a tensor of {plan.num_bytes}", where=path)
            digests[plan.name] = state.hexdigest()
    return digests


def header_bytes(plans: list[TensorPlan]) -> bytes:
    """What a file of these tensors begins with; data follows at a multiple of 4096 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for plan in plans:
        end = at + plan.num_bytes
        header[plan.name] = {
            "dtype": plan.dtype,
            "shape": list(plan.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-(len(text) + 8) % 4096)
    return len(text).to_bytes(8, "little") + text


def array_plan(name: str, array: np.ndarray[Any, Any], dtype: str = "F32") -> TensorPlan:
    """A plan for a tensor that is in memory already."""
    return TensorPlan(name, dtype, tuple(array.shape), [encode(array, dtype)])

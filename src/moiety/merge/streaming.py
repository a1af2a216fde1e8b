"""Tensors from many files into many files, in parallel, in constant memory.

A tensor that is taken over bit by bit from a file that was verified is copied inside the kernel,
when the file's state before and after the copy is the one it had before it was verified: then the
bytes copied are those that were hashed. Everything else is hashed on its way.

SHA-256 is slow (0.2 to 0.4 GB/s on a core without SHA instructions, 1.5 GB/s with), so the jobs
go to a small thread pool: ``hashlib``, file reads and writes all release the interpreter's lock.
The places of all tensors are known before the first byte is written, so the bytes do not depend
on which job ends first.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from moiety.errors import IntegrityError
from moiety.files import copy_some, digest_bytes
from moiety.tensors import ITEM_BYTES, TensorFile, TensorPlan, TensorSpan, header_bytes

BLOCK_BYTES = 2**19
RANGE_BYTES = 2**25
JOB_BYTES = 2**28
MAX_WORKERS = 8

Result = TypeVar("Result")
Block = bytes | bytearray | memoryview
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from several threads, never from two at once."""


@dataclass(frozen=True)
class Origin:
    """A tensor in an open file; ``digest`` is the one it was verified to have."""

    file: TensorFile
    span: TensorSpan
    digest: str

    def continues(self, other: Origin) -> bool:
        """Whether this tensor follows the other in the same file."""
        return self.file is other.file and self.span.begin == other.span.end


@dataclass(frozen=True)
class Piece:
    """One tensor to be written; ``blocks()`` makes its bytes, ``expected`` is their digest.

    ``origin`` is where these bytes lie already, if they do.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Block]]
    expected: str | None = None
    origin: Origin | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Written:
    """What lies in a shard now: its size, the digest of its header, the digest of each tensor.

    The three together fix every byte of the file, so it needs no second pass for a file digest.
    """

    num_bytes: int
    header: str
    tensors: Mapping[str, str]


def copied(file: TensorFile, name: str, new_name: str, expected: str) -> Piece:
    """A tensor taken over bit by bit under another name."""
    span = file.spans[name]
    return Piece(
        new_name,
        span.dtype,
        span.shape,
        lambda: file.blocks(name, BLOCK_BYTES),
        expected,
        Origin(file, span, expected),
    )


def num_workers() -> int:
    """Two threads more than cores we may use: while some wait for the disk, others hash."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)) + 2)


def write_shards(
    folder: Path, shards: Mapping[str, list[Piece]], progress: Progress | None = None
) -> dict[str, Written]:
    """Writes safetensors files into ``folder``, all tensors of all files as one pool of jobs.

    Raises:
        IntegrityError: a tensor's bytes are not those of its digest; the files are worthless then.
        OSError: the disk is full, which shows before the first byte where the system can tell.
    """
    run = _Run(sum(p.num_bytes for pieces in shards.values() for p in pieces), progress)
    opened: list[_Shard] = []
    try:
        opened += [_Shard(folder / name, pieces) for name, pieces in sorted(shards.items())]
        jobs = [partial(run.write, shard, part) for shard in opened for part in shard.parts()]
        found = iter([digest for digests in run_jobs(jobs, run.stop) for digest in digests])
        run_jobs([partial(os.fsync, shard.handle) for shard in opened], run.stop)
    finally:
        for shard in opened:
            os.close(shard.handle)
    return {shard.path.name: shard.result([next(found) for _ in shard.pieces]) for shard in opened}


def run_jobs(jobs: Sequence[Callable[[], Result]], stop: threading.Event) -> list[Result]:
    """Runs jobs on the pool and returns their results in order; the first failure ends them all."""
    with ThreadPoolExecutor(num_workers()) as pool:
        futures: list[Future[Result]] = [pool.submit(job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


class _Shard:
    """A file under construction: where each tensor's bytes go is settled when it is opened."""

    def __init__(self, path: Path, pieces: list[Piece]) -> None:
        self.path, self.pieces = path, pieces
        plans = [TensorPlan(p.name, p.dtype, p.shape, ()) for p in pieces]
        header = header_bytes(plans)
        self.header = digest_bytes(header)
        self.begins: dict[str, int] = {}
        self.num_bytes = len(header)
        for piece in pieces:
            self.begins[piece.name] = self.num_bytes
            self.num_bytes += piece.num_bytes
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            _reserve(self.handle, self.num_bytes)
            _write_at(self.handle, header, 0)
        except BaseException:
            os.close(self.handle)
            raise

    def parts(self) -> list[list[Piece]]:
        """The pieces as jobs: those that lie side by side in their old file too are one."""
        found: list[list[Piece]] = []
        job_bytes = 0
        for piece in self.pieces:
            last, job_bytes = found[-1][-1].origin if found else None, job_bytes + piece.num_bytes
            beside = last is not None and piece.origin is not None and piece.origin.continues(last)
            if beside and job_bytes <= JOB_BYTES:
                found[-1].append(piece)
            else:
                found.append([piece])
                job_bytes = piece.num_bytes
        return found

    def result(self, digests: list[str]) -> Written:
        names = [piece.name for piece in self.pieces]
        return Written(self.num_bytes, self.header, dict(zip(names, digests, strict=True)))


class _Run:
    """What the jobs of one call share: how far they are, and whether to go on."""

    def __init__(self, total_bytes: int, progress: Progress | None) -> None:
        self.stop = threading.Event()
        self._total_bytes, self._done_bytes = total_bytes, 0
        self._progress, self._lock = progress, threading.Lock()

    def write(self, shard: _Shard, pieces: list[Piece]) -> list[str]:
        """Writes pieces that are one job, and returns their digests."""
        copied = self._copy(shard, pieces)
        if copied is not None:
            return copied
        return [self._hash(shard, piece) for piece in pieces]

    def _copy(self, shard: _Shard, pieces: list[Piece]) -> list[str] | None:
        """Copies verified bytes in the kernel; None when their file may have changed meanwhile."""
        origins = [piece.origin for piece in pieces if piece.origin is not None]
        if len(origins) < len(pieces) or not origins[0].file.unchanged():
            return None
        file, begin, end = origins[0].file, origins[0].span.begin, origins[-1].span.end
        target, at = shard.begins[pieces[0].name] - begin, begin
        while at < end and not self.stop.is_set():
            done = copy_some(
                file.fileno(), shard.handle, min(RANGE_BYTES, end - at), at, at + target
            )
            if done == 0:
                return None
            _begin_writeback(shard.handle, at + target, done)
            at += done
        # Looked at after the last byte was read: what happens to the file now is no matter.
        if not file.unchanged():
            return None
        self._count(at - begin)
        return [origin.digest for origin in origins]

    def _hash(self, shard: _Shard, piece: Piece) -> str:
        state = hashlib.sha256()
        begin = at = shard.begins[piece.name]
        for block in self._until_stopped(piece.blocks()):
            state.update(block)
            _write_at(shard.handle, block, at)
            _begin_writeback(shard.handle, at, len(block))
            at += len(block)
            self._count(len(block))
        where = f"{shard.path.name}: {piece.name}"
        if at - begin != piece.num_bytes:
            message = f"{at - begin} bytes for a tensor of {piece.num_bytes}"
            raise IntegrityError(message, where=where)
        digest = state.hexdigest()
        if piece.expected not in (None, digest):
            raise IntegrityError("changed since it was verified", where=where)
        return digest

    def _until_stopped(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            if self.stop.is_set():
                return
            yield block

    def _count(self, num_bytes: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done_bytes += num_bytes
                self._progress(self._done_bytes, self._total_bytes)


def _reserve(handle: int, num_bytes: int) -> None:
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _begin_writeback(handle: int, at: int, num_bytes: int) -> None:
    # On Linux this starts writing the range out, so that the disk works while we go on.
    os.posix_fadvise(handle, at, num_bytes, os.POSIX_FADV_DONTNEED)


def _write_at(handle: int, block: Block, at: int) -> None:
    view = memoryview(block)
    while len(view):
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done

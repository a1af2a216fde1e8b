"""Files as the rooms hand them to each other: canonical JSON, digests, atomic writes, links.

Every function that reads takes a limit, so that no file can make us allocate what it likes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moiety.errors import ConfigError, FormatError, IntegrityError, StateError

PAPER_MAX_BYTES = 64 * 2**20
"""No JSON paper is larger: an anchor with 10,000 tensors needs about 3 MB."""

_BLOCK_BYTES = 2**20

_CLOCK_TICK_NS = 50_000_000
"""The kernel stamps files by a clock that stands still for up to 10 ms; this is well above."""

_STAMPING_KINDS = frozenset({0xEF53, 0x58465342, 0x9123683E})
"""ext4, XFS, btrfs: local, and they stamp every write and the first store through a map."""

_AT_CWD = -100
_RENAME_EXCHANGE = 2


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN, final newline.

    Source: the idea of RFC 8785; numbers are written as Python writes them (shortest round trip).
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8") + b"\n"


def parse_json(data: bytes, where: str | Path) -> Any:
    """Hostile bytes to a JSON value. Refuses duplicate keys, NaN, and anything but UTF-8.

    Raises:
        FormatError: with the place, whatever is wrong with the bytes.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            raise ValueError("a key occurs twice")
        return seen

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", where=where) from error


def read_limited(path: Path, max_bytes: int = PAPER_MAX_BYTES, *, follow: bool = False) -> bytes:
    """The bytes of a regular file, refused before reading when it is larger than ``max_bytes``.

    ``follow`` links only where a person named this very file: secrets are mounted as links. What
    lies in a folder of somebody else's making must not lead out of it.

    Raises:
        FormatError: too large, a link, a device, or not there.
    """
    try:
        links = 0 if follow else os.O_NOFOLLOW
        handle = os.open(path, os.O_RDONLY | links | os.O_NONBLOCK)
    except OSError as error:
        raise FormatError(f"cannot open: {error.strerror}", where=path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FormatError("not a regular file", where=path)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise FormatError(f"{size:,} bytes, the limit is {max_bytes:,}", where=path)
        data = file.read(size + 1)
        if len(data) > size:
            raise FormatError("grew while it was read", where=path)
        return data


def read_toml(path: Path, max_bytes: int = PAPER_MAX_BYTES) -> dict[str, Any]:
    """The table in a TOML file that a person wrote.

    Raises:
        ConfigError: no such file, too large, or not TOML.
    """
    try:
        return tomllib.loads(read_limited(path, max_bytes, follow=True).decode("utf-8"))
    except FormatError as error:
        raise ConfigError(error.message, where=path, remedy="name a TOML file") from None
    except (ValueError, RecursionError) as error:
        remedy = "mend it; docs/formats.md shows how it is written"
        raise ConfigError(f"not TOML: {error}", where=path, remedy=remedy) from None


def check_regular(path: Path) -> None:
    """Raises ``FormatError`` unless ``path`` is a plain file and not a link."""
    if path.is_symlink() or not path.is_file():
        raise FormatError("not a regular file", where=path)


def list_files(folder: Path, max_files: int = 100_000) -> list[str]:
    """Every file below ``folder`` as sorted POSIX paths, links and special files refused.

    Raises:
        IntegrityError: a link, a device, an empty folder, or more than ``max_files`` entries.
    """
    found: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in [*folders, *names]:
            path = Path(parent) / name
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise IntegrityError("a link or special file, only plain files allowed", where=path)
        if not folders and not names:
            raise IntegrityError("an empty folder, which nothing accounts for", where=parent)
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names]
        if len(found) > max_files:
            raise IntegrityError(f"more than {max_files:,} files", where=folder)
    return sorted(found)


def check_relative(name: str, where: str | Path) -> None:
    """Raises ``FormatError`` unless ``name`` is a plain relative POSIX path."""
    path = PurePosixPath(name)
    plain = name == path.as_posix() and not path.is_absolute() and "\\" not in name
    if not name or not plain or any(part in ("..", ".") for part in path.parts):
        raise FormatError(f"not a plain relative path: {name!r}", where=where)
    if any(ord(char) < 32 for char in name):
        raise FormatError("a control character in a path", where=where)


def digest_bytes(data: bytes | memoryview) -> str:
    """SHA-256, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Writes ``data`` beside ``path``, flushes it to the disk, then renames: whole or not at all.

    A ``private`` file can be read by its owner alone (mode 0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            _widen(Path(name))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def check_free(path: Path) -> None:
    """Raises ``StateError`` when something is at ``path`` already, but for an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StateError("exists already", where=path, remedy="name a new folder, or remove it")


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder that appears at ``path`` whole, or not at all.

    Yields a hidden folder beside ``path`` to fill. On success it is renamed to ``path``; on any
    error it is removed. With ``replace`` an existing folder at ``path`` is swapped out and removed
    after the new one stands.

    Raises:
        StateError: something is at ``path`` already, or the disk is full.
    """
    path = Path(os.path.abspath(path))
    if not replace:
        check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new-"))
    try:
        with naming_full_disk(path):
            folder.chmod(0o755)
            yield folder
            for name in list_files(folder):
                _widen(folder / name)
            _sync_tree(folder)
            _swap_in(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turns the system's word for a full disk, while ``path`` is written, into a ``StateError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StateError("no space left", where=path, remedy="free space; retry") from error
        raise


def _swap_in(folder: Path, path: Path) -> None:
    old = None
    if not path.exists():
        os.replace(folder, path)
    elif _exchange(folder, path):
        old = folder
    else:
        # Between these two renames nothing stands at ``path``; it cannot be helped there.
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old-"))
        os.replace(path, old)
        os.replace(folder, path)
    _sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step, where system and file system can (Linux 3.15)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = [os.fsencode(path) for path in (one, other)]
    if rename(_AT_CWD, names[0], _AT_CWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def link_or_copy(source: Path, target: Path) -> str:
    """Puts ``source``'s content at ``target``: hard link, else a copy. Returns which of the two.

    A link into a content store (the hub's cache) is resolved first, so the target is a plain file.
    """
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        copy_range(source, target)
        return "copied"
    return "linked"


def copy_range(source: Path, target: Path) -> None:
    """Copies a file inside the kernel; on XFS and btrfs that shares the blocks (a reflink)."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size, at = os.fstat(reader.fileno()).st_size, 0
        while at < size:
            done = copy_some(reader.fileno(), writer.fileno(), min(size - at, 2**30), at, at)
            if done == 0:
                raise StateError("the file became shorter while it was copied", where=source)
            at += done


def copy_some(reader: int, writer: int, num_bytes: int, begin: int, target: int) -> int:
    """Copies bytes from ``begin`` of one open file to ``target`` of another, in the kernel.

    Returns:
        how many: at most ``num_bytes``, and 0 when the first file ends at ``begin``.
    """
    try:
        return os.copy_file_range(reader, writer, num_bytes, begin, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return os.pwrite(writer, os.pread(reader, min(num_bytes, _BLOCK_BYTES), begin), target)


@dataclass(frozen=True)
class FileState:
    """Which file a handle is of, and when it last changed. Nobody can set ``changed_ns``."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int


def file_state(handle: int) -> FileState:
    """The state of an open file now."""
    now = os.fstat(handle)
    return FileState(now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


def settled_state(handle: int) -> FileState | None:
    """A state that the file can only have for as long as none of its bytes changes, or None.

    The kernel stamps every change with the time, and no call sets that stamp (``os.utime`` sets
    the other one, and is stamped itself). Three things could still hide a change, so each gives
    None: a second change within one tick of the kernel's clock; a file system that does not stamp
    (tmpfs) or whose stamps come late, from another machine (NFS); and somebody who holds the file
    open for writing, or mapped, whose one long ``write`` or many stores bear a single old stamp.
    """
    now = time.time_ns()
    state = file_state(handle)
    if state.changed_ns > now - _CLOCK_TICK_NS or _file_system_kind(handle) not in _STAMPING_KINDS:
        return None
    return state if _has_no_writer(handle) else None


def _has_no_writer(handle: int) -> bool:
    """Whether nobody has the file open or mapped for writing; False when it cannot be told."""
    try:
        # A read lease is given for such files alone, and to their owner. Should a writer come
        # while we hold it we are told by a signal: one that does nothing, not the usual SIGIO.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _file_system_kind(handle: int) -> int:
    """The first word of Linux' ``struct statfs``, which Python does not tell; -1 elsewhere."""
    if not sys.platform.startswith("linux"):
        return -1
    # The struct has at most 120 bytes; its first field is a long on all but one architecture.
    buffer = (ctypes.c_long * 64)()
    failed = ctypes.CDLL(None).fstatfs(handle, ctypes.byref(buffer))
    return -1 if failed else int(buffer[0])


def _widen(path: Path) -> None:
    # mkstemp and safetensors make 0600; papers are meant to be read by other users too.
    mask = os.umask(0)
    os.umask(mask)
    if path.stat().st_nlink == 1:
        path.chmod(0o666 & ~mask)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        _sync_folder(Path(parent))

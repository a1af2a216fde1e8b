"""Bytes that were verified are copied without being hashed again, and only while they are those.

The oracle of "not hashed" is a false digest that nobody notices; of "noticed", a refusal.
"""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.merge.worlds import World, assert_same_tree

from moiety import files
from moiety.bundle import VerifiedBundle, anchors
from moiety.errors import IntegrityError
from moiety.merge import merge, merging, streaming, verify_release
from moiety.merge.streaming import copied, write_shards
from moiety.tensors import TensorFile, array_plan, open_tensors, write_tensors

RNG = np.random.default_rng(0)
ARRAYS = {f"t{n}": RNG.normal(size=(200, 50 + n)).astype(np.float32) for n in range(4)}
FALSE = "0" * 64
A_TICK = 0.06


@pytest.fixture
def source(tmp_path: Path) -> Iterator[TensorFile]:
    path = tmp_path / "source"
    write_tensors(path, [array_plan(name, array) for name, array in ARRAYS.items()])
    time.sleep(A_TICK)
    with open_tensors(path, settle=True) as file:
        if file.settled is None:
            pytest.skip("this file system does not stamp every change")
        yield file


def flip_last(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def flip_and_hide(path: Path) -> None:
    before = path.stat()
    flip_last(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def flip_through_a_map(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[-1] ^= 1


CHANGES = [flip_last, flip_and_hide, flip_through_a_map]


def write_all(folder: Path, source: TensorFile, digest: Callable[[str], str]) -> dict[str, str]:
    pieces = [copied(source, name, f"new.{name}", digest(name)) for name in ARRAYS]
    return dict(write_shards(folder, {"out": pieces})["out"].tensors)


def test_unchanged_bytes_are_copied_and_not_hashed(tmp_path: Path, source: TensorFile) -> None:
    digests = write_all(tmp_path, source, lambda _name: FALSE)
    assert digests == {f"new.{name}": FALSE for name in ARRAYS}
    with open_tensors(tmp_path / "out") as out:
        for name, array in ARRAYS.items():
            assert out.read(f"new.{name}").tobytes() == array.tobytes()


def test_neighbours_are_one_range_and_others_are_not(
    tmp_path: Path, source: TensorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def counted(reader: int, writer: int, num_bytes: int, begin: int, target: int) -> int:
        lengths.append(num_bytes)
        return files.copy_some(reader, writer, num_bytes, begin, target)

    monkeypatch.setattr(streaming, "copy_some", counted)
    sizes = [array.nbytes for array in ARRAYS.values()]
    order = ["t0", "t1", "t3", "t2"]
    pieces = [copied(source, name, name, source.digest(name)) for name in order]
    write_shards(tmp_path, {"out": pieces})
    assert sorted(lengths) == sorted([sizes[0] + sizes[1], sizes[2], sizes[3]])
    with open_tensors(tmp_path / "out") as out:
        assert all(out.digest(name) == source.digest(name) for name in order)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_before_the_copy_is_noticed(
    tmp_path: Path, source: TensorFile, change: Callable[[Path], None]
) -> None:
    digests = {name: source.digest(name) for name in ARRAYS}
    change(source.path)
    assert not source.unchanged()
    with pytest.raises(IntegrityError, match="changed since"):
        write_all(tmp_path, source, digests.__getitem__)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_during_the_copy_is_noticed(
    tmp_path: Path,
    source: TensorFile,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    digests = {name: source.digest(name) for name in ARRAYS}

    def meddling(reader: int, writer: int, num_bytes: int, begin: int, target: int) -> int:
        change(source.path)
        return files.copy_some(reader, writer, num_bytes, begin, target)

    monkeypatch.setattr(streaming, "copy_some", meddling)
    with pytest.raises(IntegrityError, match="changed since"):
        write_all(tmp_path, source, digests.__getitem__)


def test_a_file_that_somebody_may_write_to_is_not_believed(source: TensorFile) -> None:
    path = source.path
    with path.open("r+b") as file:
        assert files.settled_state(source.fileno()) is None
        view = mmap.mmap(file.fileno(), 0)
    assert files.settled_state(source.fileno()) is None
    view.close()
    with path.open("rb"):
        assert files.settled_state(source.fileno()) == source.settled


def test_who_opens_for_writing_is_not_held_up(source: TensorFile) -> None:
    assert files.settled_state(source.fileno()) is not None
    begin = time.monotonic()
    flip_last(source.path)
    assert time.monotonic() - begin < 1.0


def test_a_new_stamp_on_old_bytes_is_hashed_and_passes(tmp_path: Path, source: TensorFile) -> None:
    digests = {name: source.digest(name) for name in ARRAYS}
    os.link(source.path, tmp_path / "second name")
    assert not source.unchanged()
    written = write_all(tmp_path, source, digests.__getitem__)
    assert list(written.values()) == list(digests.values())


def test_a_file_just_written_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "young"
    path.write_bytes(b"x")
    written = path.stat().st_ctime_ns
    with path.open("rb") as file:
        # The clock is set, not waited for: a busy machine may pause here for longer than a tick.
        monkeypatch.setattr(time, "time_ns", lambda: written + int(A_TICK * 1e9) // 4)
        assert files.settled_state(file.fileno()) is None
        monkeypatch.setattr(time, "time_ns", lambda: written + int(A_TICK * 1e9))
        assert files.settled_state(file.fileno()) is not None


def test_a_stamp_from_the_future_is_not_believed(
    source: TensorFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: source.path.stat().st_ctime_ns - 10**9)
    assert files.settled_state(source.fileno()) is None


def test_a_file_system_in_memory_is_not_believed() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        pytest.skip("no file system in memory here")
    path = memory / f"moiety-{os.getpid()}"
    try:
        path.write_bytes(b"x")
        time.sleep(A_TICK)
        with path.open("rb") as file:
            assert files.settled_state(file.fileno()) is None
    finally:
        path.unlink()


@pytest.fixture
def own_world(world: World, tmp_path: Path) -> World:
    """A world that a test may spoil, old enough to be believed."""
    shutil.copytree(world.folder, tmp_path / "world")
    bundles = {name: tmp_path / "world" / path.name for name, path in world.bundles.items()}
    time.sleep(A_TICK)
    return World(tmp_path / "world", tmp_path / "world" / "anchor", bundles)


def swap(path: Path) -> None:
    """Another file of the same size and header, every other byte changed, under the same name."""
    honest, other = path.read_bytes(), path.with_name("other")
    header = 8 + int.from_bytes(honest[:8], "little")
    other.write_bytes(honest[:header] + bytes(len(honest) - header))
    other.replace(path)


def merge_with(
    world: World, out: Path, monkeypatch: pytest.MonkeyPatch, meddle: Callable[[], None]
) -> None:
    honest = merging.ground_from_anchor

    def meddling(anchor: anchors.Anchor, opened: merging.OpenFiles) -> object:
        meddle()
        return honest(anchor, opened)

    monkeypatch.setattr(merging, "ground_from_anchor", meddling)
    merge(world.anchor, list(world.bundles.values()), out, top_k=3)


@pytest.mark.parametrize("change", [*CHANGES, swap])
def test_an_anchor_changed_after_it_was_verified_is_refused(
    own_world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    shard = sorted(own_world.anchor.glob("model-*.safetensors"))[1]
    with pytest.raises(IntegrityError):
        merge_with(own_world, tmp_path / "out", monkeypatch, lambda: change(shard))
    assert not (tmp_path / "out").exists()


def test_a_bundle_changed_after_it_was_verified_is_refused(
    own_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = own_world.bundles["amy"] / "expert.safetensors"

    def change() -> None:
        data = weights.read_bytes()
        with weights.open("r+b") as file:
            file.seek(8 + int.from_bytes(data[:8], "little"))
            file.write(bytes(64))

    with pytest.raises(IntegrityError):
        merge_with(own_world, tmp_path / "out", monkeypatch, change)
    assert not (tmp_path / "out").exists()


def test_a_bundle_swapped_after_it_was_verified_is_merged_as_it_was(
    own_world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = own_world.bundles["amy"] / "expert.safetensors"
    merge_with(own_world, tmp_path / "out", monkeypatch, lambda: swap(weights))
    assert_same_tree(whole, tmp_path / "out")


def test_hashed_and_copied_releases_are_the_same(
    own_world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    honest = TensorFile.unchanged

    def watched(file: TensorFile) -> bool:
        seen.append(honest(file))
        return seen[-1]

    monkeypatch.setattr(TensorFile, "unchanged", watched)
    merge(own_world.anchor, list(own_world.bundles.values()), tmp_path / "copied", top_k=3)
    if not all(seen):
        pytest.skip("this file system does not stamp every change")
    monkeypatch.setattr(TensorFile, "unchanged", lambda _file: False)
    merge(own_world.anchor, list(own_world.bundles.values()), tmp_path / "hashed", top_k=3)
    assert_same_tree(tmp_path / "hashed", tmp_path / "copied")
    assert_same_tree(whole, tmp_path / "copied")
    verify_release(tmp_path / "copied")


def test_a_verified_bundle_knows_its_state(own_world: World) -> None:
    from moiety.bundle import verify_bundle

    bundle: VerifiedBundle
    with verify_bundle(own_world.bundles["amy"], anchor=None, keys=None) as bundle:
        if bundle.open().settled is None:
            pytest.skip("this file system does not stamp every change")
        assert bundle.open().unchanged()
        flip_last(own_world.bundles["amy"] / "expert.safetensors")
        assert not bundle.open().unchanged()

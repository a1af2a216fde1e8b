"""A killed process, a full disk, a broken pipe of bytes: no release, or the whole one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.merge.worlds import World, assert_same_tree

from moiety.errors import StateError
from moiety.merge import merge, verify_release
from moiety.merge.withdrawal import withdraw

SLOW_MERGE = """
import sys, time
from pathlib import Path
from moiety.merge import merge, streaming
write = streaming._write_at
def slowly(*arguments):
    time.sleep(0.05)
    write(*arguments)
streaming._write_at = slowly
anchor, out, *bundles = map(Path, sys.argv[1:])
merge(anchor, bundles, out)
"""

LIMITED_MERGE = """
import resource, signal, sys
from pathlib import Path
from moiety.merge import merge
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
anchor, out, *bundles = map(Path, sys.argv[1:])
merge(anchor, bundles, out)
"""


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".out.")]


def start(code: str, world: World, out: Path) -> subprocess.Popen[bytes]:
    arguments = [str(world.anchor), str(out), *map(str, world.bundles.values())]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)


def test_a_killed_merge_leaves_no_release_and_the_next_one_cleans_up(
    world: World, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(SLOW_MERGE, world, out)
    deadline = time.monotonic() + 60
    while not any(list(folder.iterdir()) for folder in hidden(tmp_path)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert hidden(tmp_path)
    merge(world.anchor, list(world.bundles.values()), out, top_k=3)
    assert_same_tree(whole, out)
    assert not hidden(tmp_path)


def test_a_merge_that_is_under_way_is_not_cleaned_up(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(SLOW_MERGE, world, out)
    while not any(list(folder.iterdir()) for folder in hidden(tmp_path)):
        assert process.poll() is None
        time.sleep(0.01)
    running = hidden(tmp_path)
    merge(world.anchor, [], tmp_path / "other")
    (tmp_path / "other").rename(out)  # somebody was faster
    with pytest.raises(StateError):
        merge(world.anchor, [], out)
    assert hidden(tmp_path) == running
    process.kill()
    process.wait()


def test_an_interrupted_withdrawal_leaves_the_release_as_it_was(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(world.anchor, list(world.bundles.values()), tmp_path / "out")
    before = verify_release(tmp_path / "out").digest
    order = world.order("bob", tmp_path / "order")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moiety.merge.streaming._write_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            withdraw(tmp_path / "out", "bob", order, in_place=True)
    assert verify_release(tmp_path / "out").digest == before
    assert (
        sorted(path.name for path in tmp_path.iterdir()) == ["home", "order", "out"]
        or not (tmp_path / "home").exists()
    )
    assert not hidden(tmp_path)
    assert not list(tmp_path.glob("*receipt*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_leaves_nothing(world: World, small_disk: Path) -> None:
    with pytest.raises(StateError, match="no space left"):
        merge(world.anchor, list(world.bundles.values()), small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_a_limit_on_file_sizes_leaves_nothing(world: World, tmp_path: Path) -> None:
    assert start(LIMITED_MERGE, world, tmp_path / "out").wait() != 0
    assert [path for path in tmp_path.iterdir() if path.name != "home"] == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

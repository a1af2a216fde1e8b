"""A folder that replaces another: at every moment one of the two stands there whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.merge.worlds import World, assert_same_tree

from moiety import files
from moiety.files import new_folder
from moiety.merge import merge, verify_release
from moiety.merge.withdrawal import withdraw

REPLACING = """
import itertools, sys
from pathlib import Path
from moiety.files import new_folder
path = Path(sys.argv[1])
for number in itertools.count():
    with new_folder(path, replace=True) as folder:
        for name in ("one", "two"):
            (folder / name).write_text(str(number))
    print(number, flush=True)
"""


def can_exchange(folder: Path) -> bool:
    (folder / "left").mkdir()
    (folder / "right").mkdir()
    return files._exchange(folder / "left", folder / "right")


def test_two_names_change_places(tmp_path: Path) -> None:
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "said").write_text(name)
    if not files._exchange(tmp_path / "left", tmp_path / "right"):
        pytest.skip("no exchange on this file system")
    assert (tmp_path / "left" / "said").read_text() == "right"
    assert (tmp_path / "right" / "said").read_text() == "left"


def test_a_name_that_is_not_there_is_an_error_and_no_fallback(tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "left", tmp_path / "right")


@pytest.mark.parametrize("exchange", [True, False])
def test_what_stood_there_is_gone_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda _one, _other: False)
    for number in range(3):
        with new_folder(tmp_path / "out", replace=True) as folder:
            (folder / str(number)).write_text("")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == [str(number)]


def test_whenever_it_is_killed_a_whole_folder_stands(tmp_path: Path) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("no exchange on this file system")
    path, dice = tmp_path / "out", random.Random(0)
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", REPLACING, str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        until = time.monotonic() + dice.uniform(0.0, 0.05)
        while time.monotonic() < until:
            # Fails at the first moment at which nothing stands there.
            handle = os.open(path, os.O_RDONLY)
            os.close(handle)
        process.kill()
        process.wait()
        process.stdout.close()
        assert (path / "one").read_text() == (path / "two").read_text()


def test_a_withdrawal_in_place_never_leaves_the_path_empty(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange(tmp_path):
        pytest.skip("no exchange on this file system")
    release, without = tmp_path / "release", tmp_path / "without"
    merge(world.anchor, list(world.bundles.values()), release)
    others = [path for name, path in world.bundles.items() if name != "bob"]
    merge(world.anchor, others, without)
    stood: list[str] = []
    honest = files._exchange

    def watched(one: Path, other: Path) -> bool:
        stood.append(verify_release(other).digest)
        done = honest(one, other)
        stood.append(verify_release(other).digest)
        return done

    monkeypatch.setattr(files, "_exchange", watched)
    done = withdraw(release, "bob", world.order("bob", tmp_path / "order"), in_place=True)
    assert stood == [done.digest_before, done.digest]
    assert_same_tree(without, release)

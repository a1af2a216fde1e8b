"""One honest bundle, made once and copied for each attack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.attacks.hostile import Target
from tests.attacks.tuned_world import TunedWorld
from tests.makers import make_anchor, make_bundle
from tests.merge.tunings import tune, write_proxies

from moiety.merge import merge


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An anchor, another anchor, and bundles of two owners; nobody writes here."""
    folder = tmp_path_factory.mktemp("home")
    anchor = make_anchor(folder / "anchor")
    make_anchor(folder / "other-anchor", seed=7)
    make_bundle(folder, anchor, "victim")
    make_bundle(folder, anchor, "lowrank", rank=2, seed=2)
    make_bundle(folder, anchor, "mallory", seed=3)
    return folder


@pytest.fixture
def target(home: Path, tmp_path: Path) -> Target:
    """A copy of the honest bundle with full matrices."""
    return Target(
        shutil.copytree(home / "victim.expert", tmp_path / "victim.expert"), home, "victim"
    )


@pytest.fixture
def lowrank(home: Path, tmp_path: Path) -> Target:
    """A copy of the honest bundle with low-rank factors."""
    return Target(
        shutil.copytree(home / "lowrank.expert", tmp_path / "lowrank.expert"), home, "lowrank"
    )


@pytest.fixture(scope="session")
def tuned_home(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A strict release of two owners, and a tuned one; nobody writes here."""
    folder = tmp_path_factory.mktemp("tuned")
    bundles = [home / f"{owner}.expert" for owner in ("victim", "mallory")]
    merge(home / "anchor", bundles, folder / "strict")
    key = home / "victim.pem"
    paper = write_proxies(home / "anchor", "victim", folder / "victim.json", key)
    tune(folder / "strict", folder / "tuned", paper)
    return folder


@pytest.fixture
def tuned_world(home: Path, tuned_home: Path, tmp_path: Path) -> TunedWorld:
    """Copies of both releases."""
    copies = [shutil.copytree(tuned_home / n, tmp_path / n) for n in ("strict", "tuned")]
    return TunedWorld(home, *map(Path, copies))

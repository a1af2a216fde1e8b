from __future__ import annotations

from pathlib import Path

import pytest
from tests.merge.worlds import World, make_world

from moiety.merge import merge


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def half_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An anchor in BF16 with experts in F32: everything is rounded on its way."""
    return make_world(tmp_path_factory.mktemp("half"), dtype="BF16")


@pytest.fixture(scope="session")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of all owners. Tests copy it before they change it."""
    out = tmp_path_factory.mktemp("whole") / "release"
    merge(world.anchor, list(world.bundles.values()), out, top_k=3)
    return out


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOIETY_HOME", str(tmp_path / "home"))

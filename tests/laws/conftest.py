"""Owners whose releases are merged, withdrawn from and tuned."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.merge.worlds import World, make_world

from moiety.bundle import signing


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    made = {
        dtype: make_world(tmp_path_factory.mktemp(dtype), dtype=dtype) for dtype in ("F32", "BF16")
    }
    signing.new_key(made["F32"].folder / "coordinator.pem")
    return made


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

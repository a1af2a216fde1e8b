"""Anchors and bundles that many claims look at and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.makers import make_anchor, make_bundle


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``anchor``, ``clinic.expert`` (full), ``court.expert`` (rank 2), their runs and keys."""
    folder = tmp_path_factory.mktemp("home")
    anchor = make_anchor(folder / "anchor")
    make_bundle(folder, anchor, "clinic")
    make_bundle(folder, anchor, "court", rank=2, seed=2)
    return folder

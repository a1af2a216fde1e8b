"""No bundle where one was named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError, IntegrityError


def test_an_empty_folder_is_refused(target: Target, tmp_path: Path) -> None:
    target.folder = tmp_path / "victim"
    target.folder.mkdir()
    target.refused(IntegrityError, "is missing", keys=None)


@pytest.mark.parametrize("name", ["nowhere", "n" * 5000, "a/b/c"])
def test_no_folder_is_refused(target: Target, tmp_path: Path, name: str) -> None:
    target.folder = tmp_path / name
    target.refused(FormatError, "cannot be read", keys=None)


def test_a_file_is_refused(target: Target) -> None:
    target.folder = target.weights
    target.refused(FormatError, "cannot be read", keys=None)

"""A file of the bundle is not there."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import FILES, Target

from moiety.errors import IntegrityError


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(target: Target, name: str) -> None:
    (target.folder / name).unlink()
    target.refused(IntegrityError, f"{name} is missing")

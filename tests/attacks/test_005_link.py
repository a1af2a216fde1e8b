"""A file is a link: to the right content today, to anything tomorrow."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import FILES, Target

from moiety.errors import FormatError


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_is_refused(target: Target, name: str) -> None:
    outside = target.folder.parent / name
    (target.folder / name).rename(outside)
    (target.folder / name).symlink_to(outside)
    target.refused(FormatError, "not a regular file")


@pytest.mark.parametrize("name", FILES)
def test_a_dangling_or_circular_link_is_refused(target: Target, name: str) -> None:
    (target.folder / name).unlink()
    (target.folder / name).symlink_to(target.folder / name)
    target.refused(FormatError, "not a regular file")

"""Another version of the format, or another paper altogether."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


@pytest.mark.parametrize(
    "version",
    ["moiety.expert/2", "moiety.expert/01", "moiety.order/1", "MOIETY.EXPERT/1", "", 1, None],
)
def test_another_format_string_is_refused(target: Target, version: object) -> None:
    target.change_manifest(lambda manifest: manifest.update(format=version))
    target.refused(FormatError, "format")

"""A field this version does not know may change what the others mean."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


@pytest.mark.parametrize(
    "place", [(), ("terms",), ("recipe",), ("files", "README.md"), ("privacy",)]
)
def test_an_unknown_field_is_refused(target: Target, place: tuple[str, ...]) -> None:
    def add(manifest: dict[str, Any]) -> None:
        for step in place:
            manifest = manifest[step]
        manifest["unless"] = "friday"

    target.change_manifest(add)
    target.refused(FormatError, "unless")


@pytest.mark.parametrize("place", ["owner", "terms", "text", "rank", "format"])
def test_a_missing_field_is_refused(target: Target, place: str) -> None:
    target.change_manifest(lambda manifest: manifest.pop(place))
    target.refused(FormatError, "canonical form|not a Manifest")

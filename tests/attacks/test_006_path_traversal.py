"""The manifest names files outside its folder."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


@pytest.mark.parametrize("name", ["../README.md", "/etc/passwd", "a/../README.md", "README.md\x00"])
def test_a_path_in_the_manifest_is_refused(target: Target, name: str) -> None:
    def lead_out(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("README.md")

    target.change_manifest(lead_out)
    target.refused(FormatError, "not a Manifest")


def test_a_file_list_without_the_card_is_refused(target: Target) -> None:
    target.change_manifest(lambda manifest: manifest["files"].pop("README.md"))
    target.refused(FormatError, "files must be")

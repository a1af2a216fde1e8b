"""A name that becomes a path, or looks like another owner."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


@pytest.mark.parametrize(
    "owner",
    [
        "../anchor",
        "a/b",
        "a\\b",
        "..",
        ".",
        "",
        "anchor",
        "router",
        "CON:",
        "victim\x00",
        "victim ",
        "Victim",
        "v\u0456ctim",  # a Cyrillic letter
        "victim\u200b",  # no width
        "\uff56ictim",  # full width
        "victim\n",
        "-rf",
        "x" * 64,
        "x" * 100_000,
        None,
        7,
    ],
)
def test_an_owner_name_with_tricks_is_refused(target: Target, owner: object) -> None:
    target.change_manifest(lambda manifest: manifest.update(owner=owner))
    target.refused(FormatError, "owner")

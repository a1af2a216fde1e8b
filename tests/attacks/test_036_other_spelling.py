"""The same JSON value in other bytes: one bundle, two digests."""

from __future__ import annotations

import json

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


def _respell(data: bytes, how: str) -> bytes:
    value = json.loads(data)
    spellings = {
        "indented": json.dumps(value, sort_keys=True, indent=1).encode(),
        "no newline": data.rstrip(b"\n"),
        "two newlines": data + b"\n",
        "leading space": b" " + data,
        "unsorted": json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode()
        + b"\n",
        "escaped": data.replace(b'"format"', b'"\\u0066ormat"', 1),
        "trailing data": data + b"{}",
        "utf-16": data.decode().encode("utf-16"),
    }
    return spellings[how]


SPELLINGS = [
    "indented", "no newline", "two newlines", "leading space", "unsorted", "escaped",
    "trailing data", "utf-16",
]  # fmt: skip


@pytest.mark.parametrize("how", SPELLINGS)
def test_another_spelling_of_the_manifest_is_refused(target: Target, how: str) -> None:
    target.sign(_respell((target.folder / "manifest.json").read_bytes(), how))
    target.refused(FormatError, "canonical form|not JSON")


@pytest.mark.parametrize("how", SPELLINGS)
def test_another_spelling_of_the_envelope_is_refused(target: Target, how: str) -> None:
    path = target.folder / "signature.json"
    path.write_bytes(_respell(path.read_bytes(), how))
    target.refused(FormatError, "canonical form|not JSON")


@pytest.mark.parametrize("number", ["1.6450", "16450e-4", "1.645E0", "+1.645", "01.645"])
def test_another_spelling_of_a_number_is_refused(target: Target, number: str) -> None:
    target.change_text('"anchor":1.645', f'"anchor":{number}')
    target.refused(FormatError, "canonical form|not JSON")

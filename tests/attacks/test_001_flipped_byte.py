"""A byte changed on the way."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target

from moiety.errors import IntegrityError, SignatureError


@pytest.mark.parametrize("name", ["expert.safetensors", "manifest.json", "README.md"])
def test_a_flipped_byte_is_refused(target: Target, name: str) -> None:
    data = bytearray((target.folder / name).read_bytes())
    data[-2] ^= 1
    (target.folder / name).write_bytes(data)
    target.refused(IntegrityError, "signed")


def test_a_flipped_signature_is_refused(target: Target) -> None:
    envelope = (target.folder / "signature.json").read_text()
    start = envelope.index('"sig":"') + 7
    other = "A" if envelope[start] != "A" else "B"
    (target.folder / "signature.json").write_text(envelope[:start] + other + envelope[start + 1 :])
    target.refused(SignatureError, "does not hold")

"""Two signatures: which of them was checked?"""

from __future__ import annotations

import json

import pytest
from tests.attacks.hostile import Target

from moiety.bundle import signing
from moiety.errors import FormatError
from moiety.files import canonical_json


def test_a_second_signature_is_refused(target: Target) -> None:
    data = (target.folder / "manifest.json").read_bytes()
    other = json.loads(
        signing.sign_envelope(data, "expert", signing.load_key(target.home / "mallory.pem"))
    )
    envelope = json.loads((target.folder / "signature.json").read_bytes())
    envelope["signatures"] += other["signatures"]
    (target.folder / "signature.json").write_bytes(canonical_json(envelope))
    target.refused(FormatError, "signatures")


@pytest.mark.parametrize("signatures", [[], None, {}, [[]], [None]])
def test_no_signature_is_refused(target: Target, signatures: object) -> None:
    envelope = json.loads((target.folder / "signature.json").read_bytes())
    envelope["signatures"] = signatures
    (target.folder / "signature.json").write_bytes(canonical_json(envelope))
    target.refused(FormatError, "signatures")

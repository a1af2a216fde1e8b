"""A signature by one key under the name of another."""

from __future__ import annotations

import json

import pytest
from tests.attacks.hostile import Target

from moiety.bundle import signing
from moiety.errors import FormatError, SignatureError
from moiety.files import canonical_json


def test_mallorys_signature_under_the_owners_name_is_refused(target: Target) -> None:
    data = (target.folder / "manifest.json").read_bytes()
    forged = signing.sign_envelope(data, "expert", signing.load_key(target.home / "mallory.pem"))
    envelope = json.loads(forged)
    envelope["signatures"][0]["keyid"] = signing.load_public(target.home / "victim.pub")
    (target.folder / "signature.json").write_bytes(canonical_json(envelope))
    target.refused(SignatureError, "does not hold")


@pytest.mark.parametrize(
    "keyid",
    [
        "ed25519:" + "0" * 63,
        "ed25519:" + "F" * 64,
        "rsa:" + "0" * 64,
        "",
        "ed25519:" + "\uff10" * 64,
    ],
)
def test_a_name_that_is_no_key_is_refused(target: Target, keyid: str) -> None:
    envelope = json.loads((target.folder / "signature.json").read_bytes())
    envelope["signatures"][0]["keyid"] = keyid
    (target.folder / "signature.json").write_bytes(canonical_json(envelope))
    target.refused(FormatError, "not an Envelope")

"""What was signed is not what lies in the folder."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target

from moiety.bundle import signing
from moiety.errors import FormatError, IntegrityError, SignatureError


def test_a_signature_over_another_manifest_is_refused(target: Target) -> None:
    data = (target.folder / "manifest.json").read_bytes()
    envelope = signing.sign_envelope(data + b" ", "expert", signing.load_key(target.key))
    (target.folder / "signature.json").write_bytes(envelope)
    target.refused(IntegrityError, "another manifest was signed")


def test_an_edited_manifest_is_refused(target: Target) -> None:
    path = target.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"any"', b'"ads"'))
    target.refused(IntegrityError, "another manifest was signed")


@pytest.mark.parametrize("kind", ["order", "receipt", "anchor"])
def test_a_signature_for_another_kind_of_paper_is_refused(target: Target, kind: str) -> None:
    data = (target.folder / "manifest.json").read_bytes()
    envelope = signing.sign_envelope(data, kind, signing.load_key(target.key))
    (target.folder / "signature.json").write_bytes(envelope)
    target.refused(FormatError, "does not hold a paper of kind 'expert'")


def test_a_relabelled_signature_is_refused(target: Target) -> None:
    data = (target.folder / "manifest.json").read_bytes()
    envelope = signing.sign_envelope(data, "order", signing.load_key(target.key))
    (target.folder / "signature.json").write_bytes(
        envelope.replace(b"moiety.order", b"moiety.expert")
    )
    target.refused(SignatureError, "does not hold")

"""Keys and envelopes against published vectors."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from moiety.bundle import signing
from moiety.errors import ConfigError, FormatError, StateError

# RFC 8032, section 7.1, TEST 2: secret key, public key, message, signature.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"


def test_pae_is_the_specifications_example() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert signing.pae("http://example.com/HelloWorld", b"hello world") == expected


def test_pae_counts_bytes_not_characters() -> None:
    assert signing.pae("é", "ü".encode()) == "DSSEv1 2 é 2 ü".encode()
    assert signing.pae("", b"") == b"DSSEv1 0  0 "


def test_the_key_id_is_the_public_key_of_the_rfc() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(SECRET)
    assert signing.key_id(key.public_key()) == f"ed25519:{PUBLIC}"


def test_the_signature_is_plain_ed25519_over_the_pae() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(SECRET)
    envelope = json.loads(signing.sign_envelope(b'{"a":1}\n', "order", key))
    assert envelope["payload"] == "eyJhIjoxfQo="
    assert envelope["payloadType"] == "application/vnd.moiety.order+json"
    signature = signing._strict_base64(envelope["signatures"][0]["sig"], "here")
    signed = b'DSSEv1 33 application/vnd.moiety.order+json 8 {"a":1}\n'
    key.public_key().verify(signature, signed)
    assert signature == key.sign(signed)


@pytest.mark.parametrize("payload", [b"", b"\x00\xff", b"x" * 100_001])
def test_what_was_signed_comes_back(payload: bytes) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    opened = signing.open_envelope(signing.sign_envelope(payload, "expert", key), "expert", "here")
    assert opened.payload == payload
    assert opened.key == signing.key_id(key.public_key())


@pytest.mark.parametrize("name", ["clinic", "clinic.pem", "dr.who", "deep/er/clinic"])
def test_a_new_key_is_private_and_its_halves_belong_together(tmp_path: Path, name: str) -> None:
    keyid = signing.new_key(tmp_path / name)
    stem = tmp_path / name.removesuffix(".pem")
    secret, public = stem.with_name(stem.name + ".pem"), stem.with_name(stem.name + ".pub")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert signing.load_public(public) == keyid
    assert signing.key_id(signing.load_key(secret).public_key()) == keyid


def test_a_key_may_be_a_link_as_mounted_secrets_are(tmp_path: Path) -> None:
    keyid = signing.new_key(tmp_path / "clinic")
    for name in ("clinic.pem", "clinic.pub"):
        (tmp_path / f"linked-{name}").symlink_to(name)
    assert signing.load_public(tmp_path / "linked-clinic.pub") == keyid
    assert signing.key_id(signing.load_key(tmp_path / "linked-clinic.pem").public_key()) == keyid


@pytest.mark.parametrize("taken", ["clinic.pem", "clinic.pub"])
def test_no_key_is_written_over(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(StateError, match="exists already"):
        signing.new_key(tmp_path / "clinic")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def _private(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, secret: bytes) -> bytes:
    how = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    elliptic = ec.generate_private_key(ec.SECP256R1())
    locked = _private(ed25519.Ed25519PrivateKey.generate(), b"secret")
    for data in (b"", b"junk", b"\xff" * 100, locked, _private(elliptic, b""), b"x" * 10**6):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="key"):
            signing.load_key(path)
        with pytest.raises(FormatError):
            signing.load_public(path)
    other = elliptic.public_key()
    path.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(FormatError, match="not an Ed25519 key"):
        signing.load_public(path)
    with pytest.raises(ConfigError, match="no key"):
        signing.load_key(tmp_path / "nothing.pem")

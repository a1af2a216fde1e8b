"""Ed25519 keys and DSSE envelopes.

A key is named by its public half (``ed25519:`` and 64 hex digits), so a name cannot lie.

Source: DSSE protocol 1.0 (pre-authentication encoding, envelope); RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from moiety.bundle.papers import (
    MANIFEST_MAX_BYTES,
    Envelope,
    EnvelopeSignature,
    paper_bytes,
    parse_paper,
)
from moiety.errors import ConfigError, FormatError, SignatureError, StateError
from moiety.files import read_limited

ENVELOPE_MAX_BYTES = MANIFEST_MAX_BYTES * 4 // 3 + 4096
_KEY_MAX_BYTES = 16 * 2**10
_KEYID_PREFIX = "ed25519:"


def new_key(path: Path) -> str:
    """Makes a key pair: ``KEY.pem`` (PKCS #8, mode 0600) and ``KEY.pub`` beside it.

    ``path`` names either the ``.pem`` file or the same without its ending.

    Returns:
        the key's id.

    Raises:
        StateError: one of the two files exists; a key is never written over.
    """
    secret = path if path.suffix == ".pem" else path.with_name(path.name + ".pem")
    public = secret.with_suffix(".pub")
    for file in (secret, public):
        if file.exists() or file.is_symlink():
            raise StateError("exists already", where=file, remedy="name another key file")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(secret, pem, 0o600)
    spki = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(public, spki, 0o644)
    return key_id(key.public_key())


def _write_new(path: Path, data: bytes, mode: int) -> None:
    # O_EXCL: between the look and the write nobody else's key can be lost.
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a public key."""
    return _KEYID_PREFIX + key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def load_key(path: Path) -> Ed25519PrivateKey:
    """The private key in ``KEY.pem``. Raises ``ConfigError`` when there is none."""
    try:
        key = load_pem_private_key(read_limited(path, _KEY_MAX_BYTES, follow=True), password=None)
    except FormatError as error:
        remedy = "make one with 'moiety keys new'"
        raise ConfigError(f"no key: {error.message}", where=path, remedy=remedy) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        remedy = "name the KEY.pem that 'moiety keys new' made"
        raise ConfigError("not a private key in PEM", where=path, remedy=remedy) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("not an Ed25519 key", where=path)
    return key


def load_public(path: Path) -> str:
    """The id of the public key in ``KEY.pub``. Raises ``FormatError`` when it holds none."""
    try:
        key = load_pem_public_key(read_limited(path, _KEY_MAX_BYTES, follow=True))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError("not a public key in PEM", where=path) from None
    if not isinstance(key, Ed25519PublicKey):
        raise FormatError("not an Ed25519 key", where=path)
    return key_id(key)


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: type and payload, each with its length in bytes before it.

    Source: DSSE protocol, "PAE definition".
    """
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def payload_type(kind: str) -> str:
    """The DSSE type of a paper, such as ``expert``, ``order`` or ``receipt``."""
    return f"application/vnd.moiety.{kind}+json"


def sign_envelope(payload: bytes, kind: str, key: Ed25519PrivateKey) -> bytes:
    """The canonical bytes of an envelope around ``payload``, signed by ``key``."""
    signature = key.sign(pae(payload_type(kind), payload))
    named = EnvelopeSignature(
        keyid=key_id(key.public_key()), sig=base64.b64encode(signature).decode("ascii")
    )
    envelope = Envelope(
        payload=base64.b64encode(payload).decode("ascii"),
        payloadType=payload_type(kind),
        signatures=(named,),
    )
    return paper_bytes(envelope)


@dataclass(frozen=True)
class OpenedEnvelope:
    """An envelope whose one signature holds: what was signed, and by which key."""

    payload: bytes
    key: str


def open_envelope(data: bytes, kind: str, where: str | Path) -> OpenedEnvelope:
    """Hostile bytes to a payload whose signature holds.

    Whether the key may be trusted is the caller's question.

    Raises:
        FormatError: not an envelope of this kind, or not the canonical bytes of one.
        SignatureError: the signature does not fit payload, type and key.
    """
    envelope = parse_paper(Envelope, data, where)
    if envelope.payloadType != payload_type(kind):
        raise FormatError(f"the envelope does not hold a paper of kind {kind!r}", where=where)
    payload = _strict_base64(envelope.payload, where)
    signature = _strict_base64(envelope.signatures[0].sig, where)
    keyid = envelope.signatures[0].keyid
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(keyid.removeprefix(_KEYID_PREFIX)))
        key.verify(signature, pae(envelope.payloadType, payload))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise SignatureError("the signature does not hold", where=where) from None
    return OpenedEnvelope(payload, keyid)


def check_allowed(key: str, keys: set[str] | None, where: str | Path) -> None:
    """Raises ``SignatureError`` unless ``key`` is one of ``keys`` (None: any key will do)."""
    if keys is not None and key not in keys:
        raise SignatureError(
            f"signed by {key}, which is not a key you allow",
            where=where,
            remedy="compare the key with its owner over another channel",
        )


def _strict_base64(text: str, where: str | Path) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("not base64", where=where) from None
    # The decoder overlooks stray bits in the last digit; one payload must have one spelling.
    if base64.b64encode(data).decode("ascii") != text:
        raise FormatError("not the canonical base64 of its bytes", where=where)
    return data

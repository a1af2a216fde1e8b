"""Short signed papers: withdrawal orders and proxies by owners, receipts by coordinators.

Proxies may also come unsigned: they hold nothing but names of public documents.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from moiety.bundle.manifests import verify_manifest as verify_manifest
from moiety.bundle.papers import (
    PROXIES_MAX_BYTES,
    Proxies,
    Receipt,
    WithdrawalOrder,
    paper_bytes,
    parse_paper,
)
from moiety.bundle.seal import SEAL, check_seal
from moiety.bundle.signing import (
    ENVELOPE_MAX_BYTES,
    key_id,
    load_key,
    open_envelope,
    sign_envelope,
)
from moiety.errors import ConfigError, StateError
from moiety.files import digest_bytes, parse_json, read_limited, write_atomic

ORDER_MAX_BYTES = 64 * 2**10


class VerifiedOrder:
    """An order whose signature holds; ``verify_order`` is its only maker.

    Whether ``key`` is the one that signed the bundle is for the release to say.
    """

    def __init__(self, seal: object, order: WithdrawalOrder, key: str, data: bytes) -> None:
        check_seal(seal, "VerifiedOrder")
        self.order = order
        self.key = key
        self.data = data
        self.digest = digest_bytes(data)


class VerifiedReceipt:
    """A receipt whose signature holds; ``verify_receipt`` is its only maker."""

    def __init__(self, seal: object, receipt: Receipt, key: str, data: bytes) -> None:
        check_seal(seal, "VerifiedReceipt")
        self.receipt = receipt
        self.key = key
        self.data = data
        self.digest = digest_bytes(data)


class VerifiedProxies:
    """Proxies whose signature holds, or that bear none (``key`` is None then).

    ``verify_proxies`` is its only maker. Whether ``key`` is the owner's is for the release to say.
    """

    def __init__(self, seal: object, proxies: Proxies, key: str | None, data: bytes) -> None:
        check_seal(seal, "VerifiedProxies")
        self.proxies = proxies
        self.key = key
        self.data = data
        self.digest = digest_bytes(data)


def utc_seconds(moment: datetime | None = None) -> str:
    """A moment (None: now) as orders and receipts write it: ``2026-01-31T09:30:00Z``."""
    return (moment or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_order(bundle: Path, key: Path, out: Path, *, issued: datetime | None = None) -> str:
    """Writes the owner's signed order to withdraw a bundle. Returns the order's digest.

    Raises:
        ConfigError: the key is not the one that signed the bundle.
        StateError: something is at ``out``.
    """
    secret = load_key(key)
    signed = verify_manifest(bundle)
    if key_id(secret.public_key()) != signed.key:
        remedy = "use the key that packed it; only that owner may withdraw it"
        raise ConfigError(f"this key did not sign {bundle.name}", where=key, remedy=remedy)
    order = WithdrawalOrder(
        owner=signed.manifest.owner,
        bundle=signed.digest,
        anchor=signed.manifest.anchor,
        issued=utc_seconds(issued),
    )
    return _write_new(out, sign_envelope(paper_bytes(order), "order", secret))


def verify_order(path: Path) -> VerifiedOrder:
    """Reads an order. Raises ``TrustError`` unless it is one and its signature holds."""
    data = read_limited(path, ORDER_MAX_BYTES)
    opened = open_envelope(data, "order", path)
    return VerifiedOrder(SEAL, parse_paper(WithdrawalOrder, opened.payload, path), opened.key, data)


def sign_receipt(receipt: Receipt, key: Path, out: Path) -> str:
    """Writes a coordinator's signed receipt. Returns its digest.

    Raises:
        StateError: something is at ``out``.
    """
    return _write_new(out, sign_envelope(paper_bytes(receipt), "receipt", load_key(key)))


def verify_receipt(path: Path) -> VerifiedReceipt:
    """Reads a receipt. Raises ``TrustError`` unless it is one and its signature holds."""
    data = read_limited(path, ENVELOPE_MAX_BYTES)
    opened = open_envelope(data, "receipt", path)
    return VerifiedReceipt(SEAL, parse_paper(Receipt, opened.payload, path), opened.key, data)


def write_proxies(proxies: Proxies, key: Path | None, out: Path) -> str:
    """Writes an owner's proxies, signed when there is a key. Returns the file's digest.

    Raises:
        StateError: something is at ``out``.
    """
    data = paper_bytes(proxies)
    return _write_new(out, data if key is None else sign_envelope(data, "proxies", load_key(key)))


def verify_proxies(path: Path) -> VerifiedProxies:
    """Reads proxies. Raises ``TrustError`` unless they are, and a signature they bear holds."""
    data = read_limited(path, PROXIES_MAX_BYTES)
    value = parse_json(data, path)
    if not isinstance(value, dict) or "payload" not in value:
        return VerifiedProxies(SEAL, parse_paper(Proxies, data, path), None, data)
    opened = open_envelope(data, "proxies", path)
    return VerifiedProxies(SEAL, parse_paper(Proxies, opened.payload, path), opened.key, data)


def _write_new(path: Path, data: bytes) -> str:
    if path.exists() or path.is_symlink():
        raise StateError("exists already", where=path, remedy="name a new file")
    write_atomic(path, data)
    return digest_bytes(data)

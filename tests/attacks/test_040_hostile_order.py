"""An order or a receipt that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moiety.bundle import orders, papers, signing
from moiety.errors import ConfigError, FormatError, TrustError
from moiety.files import canonical_json


@pytest.fixture
def order(home: Path, tmp_path: Path) -> Path:
    out = tmp_path / "order.json"
    orders.write_order(home / "victim.expert", home / "victim.pem", out)
    return out


def test_only_the_owner_can_order(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not sign"):
        orders.write_order(home / "victim.expert", home / "mallory.pem", tmp_path / "order.json")
    assert not (tmp_path / "order.json").exists()


def test_a_bundles_signature_is_no_order(home: Path) -> None:
    with pytest.raises(FormatError, match="kind 'order'"):
        orders.verify_order(home / "victim.expert" / "signature.json")


def test_an_order_is_no_receipt(order: Path) -> None:
    with pytest.raises(FormatError, match="kind 'receipt'"):
        orders.verify_receipt(order)


@pytest.mark.parametrize(
    "change",
    [
        {"action": "admit"},
        {"format": "moiety.order/2"},
        {"owner": "../x"},
        {"bundle": "0" * 63},
        {"bundle": "G" * 64},
        {"issued": "yesterday"},
        {"issued": "2026-13-01T00:00:00Z"},
        {"issued": "2026-01-01T00:00:00+00:00"},
        {"issued": "\uff12026-01-01T00:00:00Z"},
        {"reason": "none"},
        {"anchor": None},
    ],
)
def test_a_well_signed_order_out_of_form_is_refused(
    order: Path, home: Path, change: dict[str, object]
) -> None:
    key = signing.load_key(home / "victim.pem")
    value = json.loads(papers.paper_bytes(orders.verify_order(order).order)) | change
    order.write_bytes(signing.sign_envelope(canonical_json(value), "order", key))
    with pytest.raises(FormatError, match=next(iter(change))):
        orders.verify_order(order)


def test_every_flipped_byte_of_an_order_is_refused(order: Path) -> None:
    data = order.read_bytes()
    for place in range(len(data)):
        order.write_bytes(
            data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]
        )
        with pytest.raises(TrustError):
            orders.verify_order(order)


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[" * 60_000, b"\xff" * 99, b'{"payload":"' + b"A" * 99]
)
def test_junk_is_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "order.json"
    path.write_bytes(junk)
    for read in (orders.verify_order, orders.verify_receipt):
        with pytest.raises(FormatError):
            read(path)


def test_a_giant_order_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "order.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    for read in (orders.verify_order, orders.verify_receipt):
        with pytest.raises(FormatError, match="the limit is"):
            read(path)

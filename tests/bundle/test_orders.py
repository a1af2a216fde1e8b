"""Orders and receipts come back as they were signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from moiety.bundle import orders, papers, signing
from moiety.errors import ConfigError, StateError, TrustError
from moiety.files import digest_file

MOMENT = datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


def test_an_order_says_which_bundle_and_by_whom(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "order.json"
    digest = orders.write_order(home / "clinic.expert", home / "clinic.pem", out, issued=MOMENT)
    verified = orders.verify_order(out)
    manifest = papers.read_paper(papers.Manifest, home / "clinic.expert" / "manifest.json")
    assert verified.order == papers.WithdrawalOrder(
        owner="clinic",
        bundle=digest_file(home / "clinic.expert" / "manifest.json"),
        anchor=manifest.anchor,
        issued="2031-02-03T04:05:06Z",
    )
    assert verified.key == signing.load_public(home / "clinic.pub")
    assert verified.digest == digest == digest_file(out)
    assert verified.data == out.read_bytes()


def test_an_order_needs_the_manifest_and_its_signature_alone(home: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "signature.json"):
        (tmp_path / name).write_bytes((home / "clinic.expert" / name).read_bytes())
    orders.write_order(tmp_path, home / "clinic.pem", tmp_path / "order.json")
    assert orders.verify_order(tmp_path / "order.json").order.owner == "clinic"


def test_another_key_cannot_order(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not sign"):
        orders.write_order(home / "clinic.expert", home / "court.pem", tmp_path / "order.json")


def test_no_order_for_a_bundle_that_is_broken(home: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "signature.json"):
        (tmp_path / name).write_bytes((home / "clinic.expert" / name).read_bytes()[:-1])
    with pytest.raises(TrustError):
        orders.write_order(tmp_path, home / "clinic.pem", tmp_path / "order.json")


def test_a_receipt_comes_back_as_signed(home: Path, tmp_path: Path) -> None:
    receipt = papers.Receipt(
        owner="clinic",
        bundle="1" * 64,
        order="2" * 64,
        roster_before="3" * 64,
        roster_after="4" * 64,
        removed={"model.layers.0.mlp.experts.1.up_proj.weight": "5" * 64},
        issued=orders.utc_seconds(MOMENT),
    )
    out = tmp_path / "receipt.json"
    digest = orders.sign_receipt(receipt, home / "court.pem", out)
    verified = orders.verify_receipt(out)
    assert verified.receipt == receipt
    assert verified.key == signing.load_public(home / "court.pub")
    assert verified.digest == digest == digest_file(out)
    with pytest.raises(StateError, match="exists already"):
        orders.sign_receipt(receipt, home / "court.pem", out)


def test_times_are_utc_seconds() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert orders.utc_seconds(MOMENT.astimezone(east)) == "2031-02-03T04:05:06Z"
    now = datetime.strptime(orders.utc_seconds(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)

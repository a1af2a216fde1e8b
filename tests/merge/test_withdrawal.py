from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests import makers
from tests.merge.worlds import World, assert_same_tree, tree

from moiety.bundle import orders, pack, papers, signing
from moiety.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    PolicyError,
    SignatureError,
    StateError,
    TrustError,
)
from moiety.files import canonical_json, digest_file
from moiety.merge import merge, open_release, verify_release
from moiety.merge.withdrawal import verify_receipt_against, withdraw


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "release"))


def signed_order(world: World, path: Path, key: Path, **changes: str) -> Path:
    roster = papers.read_paper(papers.Manifest, world.bundles["bob"] / "manifest.json")
    order = papers.WithdrawalOrder(
        owner="bob",
        bundle=open_digest(world, "bob"),
        anchor=roster.anchor,
        issued=orders.utc_seconds(datetime(2026, 1, 1, tzinfo=UTC)),
    ).model_copy(update=changes)
    secret = signing.load_key(key)
    path.write_bytes(signing.sign_envelope(papers.paper_bytes(order), "order", secret))
    return path


def open_digest(world: World, owner: str) -> str:
    return orders.verify_manifest(world.bundles[owner]).digest


def test_the_receipt_tells_who_left_and_what_was_removed(
    world: World, release: Path, tmp_path: Path
) -> None:
    before = open_release(release)
    order = world.order("bob", tmp_path / "order.json")
    done = withdraw(release, "bob", order, out=tmp_path / "after")
    assert done.receipt == tmp_path / "after.receipt.json"
    assert done.flags == []
    verified = verify_receipt_against(done.receipt, tmp_path / "after")
    receipt = verified.receipt
    assert (receipt.owner, receipt.bundle) == ("bob", open_digest(world, "bob"))
    assert receipt.order == orders.verify_order(order).digest
    assert (receipt.roster_before, receipt.roster_after) == (before.digest, done.digest)
    bob = before.expert("bob")
    assert receipt.removed == bob.tensors | {"evidence.2": bob.evidence}
    home_key = signing.load_public(tmp_path / "home" / "coordinator.pub")
    assert verified.key == home_key


def test_the_coordinators_key_is_made_once(world: World, release: Path, tmp_path: Path) -> None:
    for name in ("bob", "cat"):
        order = world.order(name, tmp_path / f"{name}.json")
        withdraw(release, name, order, out=tmp_path / name)
    keys = {orders.verify_receipt(tmp_path / f"{name}.receipt.json").key for name in ("bob", "cat")}
    assert len(keys) == 1
    assert (tmp_path / "home" / "coordinator.pem").stat().st_mode & 0o777 == 0o600


def test_in_place(world: World, release: Path, tmp_path: Path) -> None:
    order = world.order("bob", tmp_path / "order.json")
    withdraw(release, "bob", order, out=tmp_path / "beside")
    withdraw(release, "bob", order, in_place=True)
    assert_same_tree(tmp_path / "beside", release)
    verify_receipt_against(tmp_path / "release.receipt.json", release)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("both", [False, True])
def test_where_to_must_be_said_once(
    world: World, release: Path, tmp_path: Path, both: bool
) -> None:
    order = world.order("bob", tmp_path / "order.json")
    with pytest.raises(ConfigError):
        withdraw(release, "bob", order, out=tmp_path / "x" if both else None, in_place=both)


def refused(release: Path, name: str, order: Path, tmp_path: Path, error: type[Exception]) -> None:
    before = tree(release)
    with pytest.raises(error):
        withdraw(release, name, order, out=tmp_path / "after")
    with pytest.raises(error):
        withdraw(release, name, order, in_place=True)
    assert tree(release) == before
    left = {path.name for path in tmp_path.iterdir()} - {"home"}
    assert not {name for name in left if "receipt" in name or "after" in name}


def test_an_order_by_another_key_is_refused(world: World, release: Path, tmp_path: Path) -> None:
    order = signed_order(world, tmp_path / "order", world.key("amy"))
    refused(release, "bob", order, tmp_path, SignatureError)


@pytest.mark.parametrize("field", ["bundle", "anchor"])
def test_an_order_for_something_else_is_refused(
    world: World, release: Path, tmp_path: Path, field: str
) -> None:
    order = signed_order(world, tmp_path / "order", world.key("bob"), **{field: "0" * 64})
    refused(release, "bob", order, tmp_path, PolicyError)


def test_an_order_takes_out_nobody_but_its_owner(
    world: World, release: Path, tmp_path: Path
) -> None:
    order = world.order("bob", tmp_path / "order")
    for name in ("amy", "anchor", "eve", "../release"):
        refused(release, name, order, tmp_path, PolicyError)


def test_an_order_that_was_changed_is_refused(world: World, release: Path, tmp_path: Path) -> None:
    order = world.order("bob", tmp_path / "order")
    data = bytearray(order.read_bytes())
    for at in range(0, len(data), 23):
        changed = tmp_path / "changed"
        changed.write_bytes(bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]))
        with pytest.raises(TrustError):
            withdraw(release, "bob", changed, out=tmp_path / "after")


def test_a_manifest_or_receipt_is_no_order(world: World, release: Path, tmp_path: Path) -> None:
    refused(release, "bob", world.bundles["bob"] / "signature.json", tmp_path, FormatError)
    refused(release, "bob", world.bundles["bob"] / "manifest.json", tmp_path, FormatError)
    refused(release, "bob", tmp_path / "nowhere", tmp_path, FormatError)


def test_a_receipt_is_never_written_over(world: World, release: Path, tmp_path: Path) -> None:
    order = world.order("bob", tmp_path / "order")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(StateError, match="exists already"):
        withdraw(release, "bob", order, out=tmp_path / "after", receipt=tmp_path / "mine")
    assert not (tmp_path / "after").exists()
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_key_that_cannot_sign_changes_nothing(
    world: World, release: Path, tmp_path: Path
) -> None:
    before = tree(release)
    order = world.order("bob", tmp_path / "order")
    with pytest.raises(ConfigError, match="no key"):
        withdraw(release, "bob", order, in_place=True, key=tmp_path / "nowhere.pem")
    assert tree(release) == before


def test_a_damaged_release_is_not_worked_on(world: World, release: Path, tmp_path: Path) -> None:
    order = world.order("bob", tmp_path / "order")
    shard = release / "expert-cat.safetensors"  # whole, in another slot: its bytes are read
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refused(release, "bob", order, tmp_path, IntegrityError)


def test_a_receipt_does_not_fit_another_release(
    world: World, release: Path, tmp_path: Path
) -> None:
    bob = withdraw(release, "bob", world.order("bob", tmp_path / "b"), out=tmp_path / "no-bob")
    cat = withdraw(release, "cat", world.order("cat", tmp_path / "c"), out=tmp_path / "no-cat")
    for receipt, place in ((bob, "release"), (bob, "no-cat"), (cat, "no-bob")):
        with pytest.raises(IntegrityError, match="another release"):
            verify_receipt_against(receipt.receipt, tmp_path / place)


def test_a_receipt_that_was_changed_is_refused(world: World, release: Path, tmp_path: Path) -> None:
    done = withdraw(release, "bob", world.order("bob", tmp_path / "b"), out=tmp_path / "after")
    data = done.receipt.read_bytes()
    for at in range(0, len(data), 97):
        changed = tmp_path / "changed"
        changed.write_bytes(bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]))
        with pytest.raises(TrustError):
            verify_receipt_against(changed, tmp_path / "after")


def test_a_receipt_for_a_release_that_was_damaged_since_is_refused(
    world: World, release: Path, tmp_path: Path
) -> None:
    done = withdraw(release, "bob", world.order("bob", tmp_path / "b"), out=tmp_path / "after")
    copy = Path(shutil.copytree(tmp_path / "after", tmp_path / "copy"))
    shard = copy / "expert-amy.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError):
        verify_receipt_against(done.receipt, copy)


def lying_receipt(tmp_path: Path, honest: Path, release: Path, **changes: object) -> Path:
    """A receipt by a coordinator who signs what is not true."""
    receipt = orders.verify_receipt(honest).receipt
    after = open_release(release).digest
    lie = receipt.model_copy(update={"roster_after": after, **changes})
    orders.sign_receipt(lie, tmp_path / "home" / "coordinator.pem", tmp_path / "lie")
    return tmp_path / "lie"


def test_a_signed_lie_about_a_release_that_still_has_the_owner_is_refused(
    world: World, release: Path, tmp_path: Path
) -> None:
    done = withdraw(release, "bob", world.order("bob", tmp_path / "b"), out=tmp_path / "after")
    lie = lying_receipt(tmp_path, done.receipt, release)
    with pytest.raises(PolicyError, match="still in the release"):
        verify_receipt_against(lie, release)


def test_an_expert_kept_under_another_name_is_found(
    world: World, whole: Path, tmp_path: Path
) -> None:
    """The same weights, packed again by somebody else: the withdrawal must not look obeyed."""
    run = makers.make_run(tmp_path / "eve.run", world.anchor, "eve", seed=1)  # amy's seed
    signing.new_key(tmp_path / "eve.pem")
    pack(run, tmp_path / "eve.pem", tmp_path / "eve.expert")
    merge(world.anchor, [world.bundles["amy"], tmp_path / "eve.expert"], tmp_path / "both")
    done = withdraw(
        tmp_path / "both", "amy", world.order("amy", tmp_path / "a"), out=tmp_path / "after"
    )
    assert done.flags
    assert "eve" in done.flags[0]
    with pytest.raises(PolicyError, match="still there"):
        verify_receipt_against(done.receipt, tmp_path / "after")


def test_what_equals_the_anchor_was_never_the_owners(world: World, tmp_path: Path) -> None:
    """An expert that is a copy of the anchor leaves tensors behind that look like its own."""
    run = makers.make_run(tmp_path / "copy.run", world.anchor, "copy", seed=5)
    path = run / "expert.safetensors"
    arrays = makers.read_arrays(path)
    anchor = makers.read_arrays(world.anchor / "model-00001-of-00002.safetensors")
    anchor |= makers.read_arrays(world.anchor / "model-00002-of-00002.safetensors")
    for name in arrays:
        if name.endswith(".weight"):
            arrays[name] = anchor[f"model.{name}"]
    makers.write_arrays(path, arrays)
    paper = json.loads((run / "run.json").read_text())
    paper["expert"] = {"bytes": path.stat().st_size, "sha256": digest_file(path)}
    (run / "run.json").write_bytes(canonical_json(paper))
    signing.new_key(tmp_path / "copy.pem")
    pack(run, tmp_path / "copy.pem", tmp_path / "copy.expert")
    merge(world.anchor, [tmp_path / "copy.expert"], tmp_path / "both")
    orders.write_order(tmp_path / "copy.expert", tmp_path / "copy.pem", tmp_path / "order")
    done = withdraw(tmp_path / "both", "copy", tmp_path / "order", out=tmp_path / "after")
    assert done.flags == []
    verify_receipt_against(done.receipt, tmp_path / "after")


def test_the_old_release_is_untouched(world: World, release: Path, tmp_path: Path) -> None:
    before = tree(release)
    withdraw(release, "amy", world.order("amy", tmp_path / "a"), out=tmp_path / "after")
    assert tree(release) == before
    verify_release(release)

"""What verification promises beside refusing: flags, one handle, constant memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from tests.makers import make_anchor, make_bundle

from moiety.bundle import anchors, orders, signing, verify_bundle
from moiety.errors import IntegrityError, SignatureError


def test_without_an_anchor_or_keys_the_flags_say_what_is_unchecked(home: Path) -> None:
    with verify_bundle(home / "clinic.expert", anchor=None, keys=None) as bundle:
        assert len(bundle.flags) == 2
        assert "norms and evidence are unchecked" in bundle.flags[0]
        assert bundle.key in bundle.flags[1]


def test_with_both_an_honest_bundle_has_no_flag(home: Path) -> None:
    keys = {signing.load_public(home / "court.pub")}
    facts = anchors.open_anchor(home / "anchor")
    with verify_bundle(home / "court.expert", anchor=facts, keys=keys) as bundle:
        assert bundle.flags == ()
        assert bundle.manifest.owner == "court"
        assert bundle.key in keys
        assert bundle.manifest_bytes == (home / "court.expert" / "manifest.json").read_bytes()
        assert bundle.signature_bytes == (home / "court.expert" / "signature.json").read_bytes()


def test_a_manifest_verifies_alone(home: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "signature.json"):
        (tmp_path / name).write_bytes((home / "clinic.expert" / name).read_bytes())
    signed = orders.verify_manifest(tmp_path)
    with verify_bundle(home / "clinic.expert", anchor=None, keys=None) as bundle:
        assert (signed.digest, signed.key) == (bundle.digest, bundle.key)
        assert signed.manifest == bundle.manifest
    with pytest.raises(SignatureError):
        orders.verify_manifest(tmp_path, keys=set())


def test_closing_gives_the_handle_back(home: Path) -> None:
    bundle = verify_bundle(home / "clinic.expert", anchor=None, keys=None)
    bundle.close()
    with pytest.raises(ValueError, match="closed"):
        bundle.open().digest("router.evidence")


@pytest.mark.parametrize("rank", [None, 4])
def test_memory_does_not_grow_with_the_expert(tmp_path: Path, rank: int | None) -> None:
    """38 MB of weights in full, read by two threads in blocks of 8 MB."""
    anchor = make_anchor(tmp_path / "anchor", layers=4, width=512, hidden=1536)
    folder = make_bundle(tmp_path, anchor, "owner", rank=rank)
    facts = anchors.open_facts(anchor)
    tracemalloc.start()
    try:
        verify_bundle(folder, anchor=facts, keys=None).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 28 * 2**20
    if rank is None:
        _flip_far_inside(folder / "expert.safetensors")
        with pytest.raises(IntegrityError, match="signed"):
            verify_bundle(folder, anchor=facts, keys=None)


def _flip_far_inside(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(30_000_001)
        byte = file.read(1)[0]
        file.seek(30_000_001)
        file.write(bytes([byte ^ 4]))

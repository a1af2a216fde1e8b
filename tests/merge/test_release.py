"""Every byte of a release is accounted for, and a roster that lies about it is found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.merge.worlds import tree

from moiety.bundle import signing
from moiety.errors import IntegrityError, TrustError
from moiety.files import canonical_json, digest_bytes, digest_file
from moiety.merge import load_release, open_release, verify_release
from moiety.tensors import open_tensors


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "release"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def seal(release: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """What an attacker can do who controls the folder: make the roster fit the files again."""
    roster = json.loads((release / "roster.json").read_bytes())
    change(roster)
    for name, facts in roster["files"].items():
        if (release / name).exists():
            facts["bytes"] = (release / name).stat().st_size
            facts["sha256"] = digest_file(release / name)
    (release / "roster.json").write_bytes(canonical_json(roster))


def nothing(_: dict[str, Any]) -> None:
    pass


def test_an_honest_release_holds(whole: Path) -> None:
    opened, verified = open_release(whole), verify_release(whole)
    assert opened.digest == verified.digest == digest_bytes((whole / "roster.json").read_bytes())
    assert verified.names == ["anchor", "amy", "bob", "cat", "dan"]


def test_a_flipped_bit_anywhere_is_found(release: Path) -> None:
    for name, data in tree(release).items():
        step = max(1, len(data) // 12)
        for at in [*range(0, len(data), step), len(data) - 1]:
            flip(release / name, at)
            with pytest.raises(TrustError):
                verify_release(release)
            flip(release / name, at)
    verify_release(release)


def test_opening_finds_all_but_flipped_weights(release: Path) -> None:
    for name, data in tree(release).items():
        flip(release / name, len(data) - 1)
        if name == "shared.safetensors" or name.startswith("expert-"):
            open_release(release)
        else:
            with pytest.raises(TrustError):
                open_release(release)
        flip(release / name, len(data) - 1)


def test_a_cut_or_grown_file_is_found(release: Path) -> None:
    for name, data in tree(release).items():
        for other in (data[:-1], data + b"\0", b""):
            (release / name).write_bytes(other)
            with pytest.raises(TrustError):
                open_release(release)
        (release / name).write_bytes(data)
    open_release(release)


def test_a_missing_file_is_found(release: Path) -> None:
    for name, data in tree(release).items():
        (release / name).unlink()
        with pytest.raises(TrustError):
            open_release(release)
        (release / name).write_bytes(data)


def test_an_added_file_folder_or_link_is_found(release: Path) -> None:
    (release / "modeling.py").write_text("import os")
    with pytest.raises(IntegrityError, match="not in the roster"):
        open_release(release)
    (release / "modeling.py").unlink()
    (release / "empty").mkdir()
    with pytest.raises(IntegrityError):
        open_release(release)
    (release / "empty").rmdir()
    data = (release / "README.md").rename(release.parent / "README.md")
    (release / "README.md").symlink_to(data)
    with pytest.raises(TrustError):
        open_release(release)


def test_no_folder_and_no_release(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        for reader in (open_release, verify_release, load_release):
            with pytest.raises(TrustError):
                reader(place)


def test_two_experts_exchanged_are_found(release: Path) -> None:
    amy, cat = release / "expert-amy.safetensors", release / "expert-cat.safetensors"
    amy_data, cat_data = amy.read_bytes(), cat.read_bytes()
    amy.write_bytes(cat_data)
    cat.write_bytes(amy_data)
    with pytest.raises(IntegrityError):
        open_release(release)


def set_top_k(roster: dict[str, Any]) -> None:
    roster["top_k"] = roster["effective_top_k"] = 2


def claim_strictness(roster: dict[str, Any]) -> None:
    roster["strict"] = False


def rename_owner(roster: dict[str, Any]) -> None:
    roster["experts"][1]["owner"] = roster["experts"][1]["name"] = "ann"


def exchange_slots(roster: dict[str, Any]) -> None:
    roster["experts"][1]["slot"], roster["experts"][2]["slot"] = 2, 1


def drop_expert(roster: dict[str, Any]) -> None:
    del roster["experts"][4]
    roster["shards"].pop("expert-dan.safetensors")


def other_key(roster: dict[str, Any]) -> None:
    roster["experts"][1]["key"] = roster["experts"][2]["key"]


def other_bundle(roster: dict[str, Any]) -> None:
    roster["experts"][1]["bundle"] = roster["experts"][2]["bundle"]


def other_terms(roster: dict[str, Any]) -> None:
    roster["experts"][1]["terms"]["licence"] = "CC0-1.0"


def other_rank(roster: dict[str, Any]) -> None:
    roster["experts"][2]["rank"] = 3


def other_factor(roster: dict[str, Any]) -> None:
    factors = roster["experts"][2]["tensors"]
    factors[sorted(factors)[0]] = "0" * 64


def other_table(roster: dict[str, Any]) -> None:
    roster["experts"][1]["evidence"] = "0" * 64


def other_anchor(roster: dict[str, Any]) -> None:
    roster["anchor"] = "0" * 64


def other_width(roster: dict[str, Any]) -> None:
    roster["width"] = 16


def path_out(roster: dict[str, Any]) -> None:
    roster["files"]["../evil"] = roster["files"].pop("README.md")


def unknown_field(roster: dict[str, Any]) -> None:
    roster["note"] = "hello"


def owned_anchor(roster: dict[str, Any]) -> None:
    roster["experts"][0]["owner"] = "amy"


LIES = [
    set_top_k,
    claim_strictness,
    rename_owner,
    exchange_slots,
    drop_expert,
    other_key,
    other_bundle,
    other_terms,
    other_rank,
    other_factor,
    other_table,
    other_anchor,
    other_width,
    path_out,
    unknown_field,
    owned_anchor,
]


@pytest.mark.parametrize("lie", LIES)
def test_a_roster_that_lies_is_found(release: Path, lie: Callable[[dict[str, Any]], None]) -> None:
    seal(release, lie)
    with pytest.raises(TrustError):
        open_release(release)


def test_sealing_again_without_a_lie_is_no_lie(release: Path) -> None:
    seal(release, nothing)
    verify_release(release)


@pytest.mark.parametrize(
    ("slot", "owner", "name"),
    [
        (0, "anchor", "model.layers.1.mlp.experts.0.down_proj.weight"),
        (1, "amy", "model.layers.1.mlp.experts.1.down_proj.weight"),
        (2, "bob", "layers.1.mlp.down_proj.delta_out"),
    ],
)
def test_other_weights_with_a_roster_that_fits_are_found(
    release: Path, slot: int, owner: str, name: str
) -> None:
    """Experts and the anchor keep the very bits that were signed, so no roster can lie."""
    flip(release / f"expert-{owner}.safetensors", -1)

    def fit(roster: dict[str, Any]) -> None:
        tensors = roster["experts"][slot]["tensors"]
        assert name in tensors
        with open_tensors(release / f"expert-{owner}.safetensors") as file:
            tensors[name] = file.digest(name)

    seal(release, fit)
    with pytest.raises(IntegrityError, match=r"signed|not the anchor"):
        open_release(release)


def test_shared_weights_are_those_of_the_anchors_paper(release: Path) -> None:
    flip(release / "shared.safetensors", -1)
    seal(release, nothing)
    with pytest.raises(IntegrityError, match="not the tensor"):
        verify_release(release)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_another_table_with_a_roster_that_fits_is_found(release: Path, slot: int) -> None:
    path, table_bytes = release / "evidence.safetensors", 4 * 32
    begin = path.stat().st_size - (5 - slot) * table_bytes
    flip(path, begin)
    digest = digest_bytes(path.read_bytes()[begin : begin + table_bytes])

    def fit(roster: dict[str, Any]) -> None:
        roster["experts"][slot]["evidence"] = digest

    seal(release, fit)
    with pytest.raises(IntegrityError, match="table is not zero" if slot == 0 else "signed"):
        open_release(release)


def test_a_tokenizer_or_probe_that_is_not_the_anchors_is_found(release: Path) -> None:
    for name in ("tokenizer.json", "generation_config.json", "anchor/probe.safetensors"):
        old = (release / name).read_bytes()
        flip(release / name, -2)
        seal(release, nothing)
        with pytest.raises(IntegrityError, match="not the anchor's file"):
            open_release(release)
        (release / name).write_bytes(old)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 4),
        ("num_experts_per_tok", 5),
        ("norm_topk_prob", True),
        ("model_type", "flex_olmo"),
        ("architectures", ["FlexOlmoForCausalLM"]),
        ("auto_map", {"AutoModelForCausalLM": "evil.Model"}),
        ("dtype", "bfloat16"),
        ("rope_theta", 1.0),
    ],
)
def test_a_configuration_that_says_something_else_is_found(
    release: Path, key: str, value: object
) -> None:
    config = json.loads((release / "config.json").read_bytes())
    (release / "config.json").write_bytes(canonical_json({**config, key: value}))
    seal(release, nothing)
    with pytest.raises(IntegrityError, match="configuration"):
        open_release(release)


def test_a_signature_by_somebody_else_is_found(release: Path, tmp_path: Path) -> None:
    signing.new_key(tmp_path / "eve")
    manifest = (release / "bundles" / "amy" / "manifest.json").read_bytes()
    envelope = signing.sign_envelope(manifest, "expert", signing.load_key(tmp_path / "eve.pem"))
    (release / "bundles" / "amy" / "signature.json").write_bytes(envelope)
    seal(release, nothing)
    with pytest.raises(TrustError):
        open_release(release)


def test_a_hostile_roster_never_raises_anything_else(release: Path) -> None:
    good = (release / "roster.json").read_bytes()
    for bad in (b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, good[:-1], good + b"\n"):
        (release / "roster.json").write_bytes(bad)
        with pytest.raises(TrustError):
            open_release(release)


def test_a_pipe_is_found(release: Path) -> None:
    (release / "README.md").unlink()
    os.mkfifo(release / "README.md")
    with pytest.raises(TrustError):
        open_release(release)

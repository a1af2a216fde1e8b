from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import makers
from tests.merge.worlds import RANKS, World, assert_same_tree, make_world, tree
from transformers import AutoModelForCausalLM

from moiety.bundle import papers, signing
from moiety.errors import ConfigError, IntegrityError, PolicyError, SignatureError, StateError
from moiety.family import MATRICES, OLMO2, delta_in, delta_out, weight
from moiety.merge import admit, exporting, load_release, merge, open_release, verify_release


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def release_arrays(release: Path) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    for path in sorted(release.glob("*.safetensors")):
        found |= makers.read_arrays(path)
    return found


def test_every_tensor_is_where_it_belongs(world: World, whole: Path) -> None:
    """Oracle: the release computed tensor by tensor, in float64 where something is computed."""
    anchor = makers.read_arrays(world.anchor / "model-00001-of-00002.safetensors")
    anchor |= makers.read_arrays(world.anchor / "model-00002-of-00002.safetensors")
    expected = {name: a for name, a in anchor.items() if ".mlp." not in name}
    experts = {n: makers.read_arrays(world.bundles[n] / "expert.safetensors") for n in RANKS}
    for layer in range(2):
        for matrix in MATRICES:
            dense = anchor[OLMO2.dense(layer, matrix)]
            expected[OLMO2.mixed(layer, 0, matrix)] = dense
            for slot, (name, rank) in enumerate(sorted(RANKS.items()), start=1):
                held = experts[name]
                if rank is None:
                    whole_matrix = held[weight(layer, matrix)]
                else:
                    outer, inner = held[delta_out(layer, matrix)], held[delta_in(layer, matrix)]
                    whole_matrix = dense + outer.astype(np.float64) @ inner.astype(np.float64)
                expected[OLMO2.mixed(layer, slot, matrix)] = whole_matrix
        rows = [experts[owner][f"layers.{layer}.router.token"] for owner in sorted(RANKS)]
        expected[OLMO2.gate(layer)] = np.stack([np.zeros_like(rows[0]), *rows])
    tables = [experts[owner]["router.evidence"] for owner in sorted(RANKS)]
    expected["evidence"] = np.stack([np.zeros_like(tables[0]), *tables])
    found = release_arrays(whole)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-7, err_msg=name)


def test_full_experts_tables_and_rows_keep_their_very_bits(world: World, whole: Path) -> None:
    roster = open_release(whole).roster
    manifest = read_json(world.bundles["cat"] / "manifest.json")
    cat = roster.experts[3]
    assert cat.rows.evidence == manifest["tensors"]["router.evidence"]["sha256"]
    for layer in range(2):
        for matrix in MATRICES:
            signed = manifest["tensors"][weight(layer, matrix)]["sha256"]
            assert cat.tensors[OLMO2.mixed(layer, 3, matrix)] == signed
        assert (
            cat.rows.token[layer] == manifest["tensors"][f"layers.{layer}.router.token"]["sha256"]
        )


def test_the_configuration_says_what_stock_loaders_need(world: World, whole: Path) -> None:
    dense, mixed = read_json(world.anchor / "config.json"), read_json(whole / "config.json")
    assert mixed["architectures"] == ["FlexOlmoForCausalLM"]
    assert mixed["model_type"] == "flex_olmo"
    assert (mixed["num_experts"], mixed["num_experts_per_tok"]) == (5, 3)
    assert mixed["norm_topk_prob"] is mixed["output_router_logits"] is False
    assert mixed["router_aux_loss_coef"] == 0.0
    assert mixed["rope_theta"] == 1000000.0
    assert mixed["rope_parameters"] == {"rope_theta": 1000000.0, "rope_type": "default"}
    assert mixed["dtype"] == mixed["torch_dtype"] == "float32"
    kept = dense.keys() - {"architectures", "model_type"}
    assert {key: mixed[key] for key in kept} == {key: dense[key] for key in kept}


@pytest.mark.parametrize(
    ("asked", "owners", "runs"), [(None, 4, 5), (None, 1, 2), (2, 4, 2), (9, 2, 3), (1, 0, 1)]
)
def test_top_k(world: World, tmp_path: Path, asked: int | None, owners: int, runs: int) -> None:
    bundles = list(world.bundles.values())[:owners]
    merge(world.anchor, bundles, tmp_path / "out", top_k=asked)
    roster = open_release(tmp_path / "out").roster
    assert (roster.top_k, roster.effective_top_k) == (asked, runs)
    assert read_json(tmp_path / "out" / "config.json")["num_experts_per_tok"] == runs


@pytest.mark.parametrize("asked", [0, -1, 10**6])
def test_an_impossible_top_k_is_refused(world: World, tmp_path: Path, asked: int) -> None:
    with pytest.raises(ConfigError, match="top_k"):
        merge(world.anchor, [], tmp_path / "out", top_k=asked)


@pytest.mark.parametrize("native", [False, True])
def test_the_index_names_every_tensor_of_every_shard(
    world: World, half_world: World, tmp_path: Path, native: bool
) -> None:
    merge(half_world.anchor, list(half_world.bundles.values()), tmp_path / "out", native=native)
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() != native
    if native:
        assert read_json(tmp_path / "out" / "config.json")["model_type"] == "moiety_native"
        return
    shards = [
        p for p in (tmp_path / "out").glob("*.safetensors") if p.name != "evidence.safetensors"
    ]
    held = {name: path.name for path in shards for name in makers.read_arrays(path)}
    sizes = [array.size for path in shards for array in makers.read_arrays(path).values()]
    found = read_json(index)
    assert found["weight_map"] == held
    assert found["metadata"] == {"total_parameters": sum(sizes), "total_size": 2 * sum(sizes)}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_transformers_loads_it_without_a_missing_or_unexpected_tensor(
    world: World, half_world: World, tmp_path: Path, dtype: str
) -> None:
    here = world if dtype == "F32" else half_world
    merge(here.anchor, list(here.bundles.values()), tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == OLMO2.mixture_class
    assert model.dtype == {"F32": torch.float32, "BF16": torch.bfloat16}[dtype]


def test_our_loader_gets_what_the_roster_says(world: World, whole: Path) -> None:
    mixture = load_release(whole, routing="token")
    assert mixture.names == ["anchor", *sorted(RANKS)]
    held = release_arrays(whole)
    assert np.array_equal(mixture.routing.table_SV.numpy(), held["evidence"])
    for number, layer in enumerate(mixture.backbone.model.layers):
        assert np.array_equal(layer.mlp.token_rows.numpy(), held[OLMO2.gate(number)])


@pytest.mark.parametrize("name", ["anchor", "amy", "bob"])
@pytest.mark.parametrize("native", [False, True])
def test_an_export_is_the_dense_model_with_the_experts_matrices(
    world: World, tmp_path: Path, name: str, native: bool
) -> None:
    bundles = [world.bundles[owner] for owner in ("amy", "bob")]
    merge(world.anchor, bundles, tmp_path / "release", native=native)
    exporting.export_dense(tmp_path / "release", name, tmp_path / "dense")
    merge(world.anchor, bundles, tmp_path / "stock")
    slot = ["anchor", "amy", "bob"].index(name)
    held = release_arrays(tmp_path / "stock")
    got = makers.read_arrays(tmp_path / "dense" / "model.safetensors")
    for layer in range(2):
        for matrix in MATRICES:
            mine = got.pop(OLMO2.dense(layer, matrix))
            assert np.array_equal(mine, held[OLMO2.mixed(layer, slot, matrix)])
    assert got.keys() == {n for n in held if ".mlp." not in n and n != "evidence"}
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", output_loading_info=True, dtype="auto"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == OLMO2.dense_class
    if name == "anchor":
        anchor = AutoModelForCausalLM.from_pretrained(world.anchor, dtype="auto")
        tokens = torch.arange(10)[None]
        assert torch.equal(model(tokens).logits, anchor(tokens).logits)


def test_an_export_of_nobody_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no expert called 'eve'"):
        exporting.export_dense(whole, "eve", tmp_path / "out")


def test_two_bundles_of_one_owner_are_refused(world: World, tmp_path: Path) -> None:
    other = makers.make_bundle(tmp_path, world.anchor, "amy", seed=77)
    with pytest.raises(PolicyError, match="two bundles of amy"):
        merge(world.anchor, [world.bundles["amy"], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_for_another_anchor_is_refused(world: World, tmp_path: Path) -> None:
    other = makers.make_anchor(tmp_path / "other", seed=9)
    with pytest.raises(PolicyError, match="another anchor"):
        merge(other, [world.bundles["amy"]], tmp_path / "out")


def test_terms_that_ended_since_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date.today() + timedelta(days=1)

    terms = papers.Terms(expires=date.today())
    eve = makers.make_bundle(tmp_path, world.anchor, "eve", terms=terms)
    merge(world.anchor, [eve], tmp_path / "in-time")
    assert open_release(tmp_path / "in-time").roster.experts[1].terms == terms
    monkeypatch.setattr("moiety.bundle.verify.date", Tomorrow)
    with pytest.raises(PolicyError, match="ended"):
        merge(world.anchor, [eve], tmp_path / "too-late")


def test_a_key_that_is_not_allowed_is_refused(world: World, tmp_path: Path) -> None:
    allowed = {signing.load_public(world.folder / "amy.pub")}
    with pytest.raises(SignatureError, match="not a key you allow"):
        merge(
            world.anchor,
            [world.bundles["amy"], world.bundles["bob"]],
            tmp_path / "out",
            keys=allowed,
        )
    done = merge(world.anchor, [world.bundles["amy"]], tmp_path / "out", keys=allowed)
    assert done.flags == []


def test_flags_name_the_owner(world: World, tmp_path: Path) -> None:
    done = merge(world.anchor, [world.bundles["bob"]], tmp_path / "out")
    assert [flag.split(":")[0] for flag in done.flags] == ["bob"]


def test_an_existing_folder_is_not_written_over(world: World, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(StateError, match="exists already"):
        merge(world.anchor, [], tmp_path / "out")
    assert tree(tmp_path) == {"out/precious": b"mine"}


def test_an_anchor_that_is_not_what_its_paper_says_is_refused(tmp_path: Path) -> None:
    here = make_world(tmp_path / "w")
    shard = here.anchor / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError):
        merge(here.anchor, [here.bundles["amy"]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_who_is_in_it_already_is_not_admitted_again(
    world: World, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(PolicyError, match="in this release already"):
        admit(whole, world.bundles["bob"], tmp_path / "out")


def test_moving_a_release_or_an_anchor_changes_nothing(world: World, tmp_path: Path) -> None:
    """Neither paths nor times get into the bytes."""
    again = make_world(tmp_path / "elsewhere" / "deep")
    for owner in ("amy", "bob"):  # keys are random, so the signed papers are taken over
        for name in ("manifest.json", "signature.json"):
            data = (world.bundles[owner] / name).read_bytes()
            (again.bundles[owner] / name).write_bytes(data)
    merge(world.anchor, [world.bundles[n] for n in ("amy", "bob")], tmp_path / "one")
    merge(again.anchor, [again.bundles[n] for n in ("bob", "amy")], tmp_path / "x" / "two")
    assert_same_tree(tmp_path / "one", tmp_path / "x" / "two")
    for data in tree(tmp_path / "one").values():
        assert str(tmp_path).encode() not in data


def test_files_can_be_read_by_others(whole: Path) -> None:
    assert {path.stat().st_mode & 0o044 for path in whole.rglob("*") if path.is_file()} == {0o044}


def test_the_card_is_not_code_and_names_everybody(whole: Path) -> None:
    card = (whole / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert all(f"| {owner} |" in card for owner in ["anchor", *RANKS])


def test_importing_the_room_imports_no_torch() -> None:
    code = "import sys, moiety.merge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_release_of_the_anchor_alone_holds(world: World, tmp_path: Path) -> None:
    merge(world.anchor, [], tmp_path / "out")
    assert verify_release(tmp_path / "out").names == ["anchor"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    anchor = AutoModelForCausalLM.from_pretrained(world.anchor, dtype="auto")
    tokens = torch.arange(10)[None]
    assert torch.allclose(model(tokens).logits, anchor(tokens).logits, atol=1e-5)

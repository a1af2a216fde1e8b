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
from moiety.family import MATRICES, OLMO2, weight
from moiety.merge import admit, load_release, merge, open_release, verify_release


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def release_arrays(release: Path) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Every tensor by the file it is in: factors are named alike in every owner's."""
    return {path.name: makers.read_arrays(path) for path in release.glob("*.safetensors")}


def test_every_tensor_is_where_it_belongs(world: World, whole: Path) -> None:
    """Oracle: the release put together tensor by tensor, from anchor and bundles."""
    anchor = makers.read_arrays(world.anchor / "model-00001-of-00002.safetensors")
    anchor |= makers.read_arrays(world.anchor / "model-00002-of-00002.safetensors")
    experts = {n: makers.read_arrays(world.bundles[n] / "expert.safetensors") for n in RANKS}
    expected = {"shared.safetensors": {n: a for n, a in anchor.items() if ".mlp." not in n}}
    places = [(layer, matrix) for layer in range(2) for matrix in MATRICES]
    expected["expert-anchor.safetensors"] = {
        OLMO2.mixed(layer, 0, matrix): anchor[OLMO2.dense(layer, matrix)]
        for layer, matrix in places
    }
    for slot, (owner, rank) in enumerate(sorted(RANKS.items()), start=1):
        expected[f"expert-{owner}.safetensors"] = (
            {OLMO2.mixed(*at(slot, place)): experts[owner][weight(*place)] for place in places}
            if rank is None
            else {n: a for n, a in experts[owner].items() if n != "router.evidence"}
        )
    tables = [experts[owner]["router.evidence"] for owner in sorted(RANKS)]
    stacked = np.stack([np.zeros_like(tables[0]), *tables])
    expected["evidence.safetensors"] = {"evidence": stacked}
    found = release_arrays(whole)
    assert found.keys() == expected.keys()
    for file, arrays in expected.items():
        assert found[file].keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[file][name].tobytes() == array.tobytes(), name


def at(slot: int, place: tuple[int, str]) -> tuple[int, int, str]:
    return place[0], slot, place[1]


def test_experts_and_tables_keep_the_very_bits_that_were_signed(world: World, whole: Path) -> None:
    for slot in open_release(whole).roster.experts[1:]:
        signed = read_json(world.bundles[slot.name] / "manifest.json")["tensors"]
        assert slot.evidence == signed.pop("router.evidence")["sha256"]
        own = {name.replace(f"experts.{slot.slot}.", ""): d for name, d in slot.tensors.items()}
        assert {name.removeprefix("model."): digest for name, digest in own.items()} == {
            name: facts["sha256"] for name, facts in signed.items()
        }


def test_factors_keep_their_dtype_where_whole_matrices_are_rounded(
    half_world: World, tmp_path: Path
) -> None:
    merge(half_world.anchor, list(half_world.bundles.values()), tmp_path / "out")
    roster = verify_release(tmp_path / "out").roster
    assert [slot.dtype for slot in roster.experts] == ["BF16", "BF16", "F32", "BF16", "F32"]
    found = release_arrays(tmp_path / "out")
    for owner, rank in RANKS.items():
        for name, mine in makers.read_arrays(
            half_world.bundles[owner] / "expert.safetensors"
        ).items():
            if rank is not None and name != "router.evidence":
                assert found[f"expert-{owner}.safetensors"][name].tobytes() == mine.tobytes()
    amy = makers.read_arrays(half_world.bundles["amy"] / "expert.safetensors")
    for layer in range(2):
        for matrix in MATRICES:
            rounded = torch.from_numpy(amy[weight(layer, matrix)]).bfloat16().float().numpy()
            held = found["expert-amy.safetensors"][OLMO2.mixed(layer, 1, matrix)]
            assert np.array_equal(held, rounded)


def test_the_configuration_tells_the_mixture_and_no_stock_loader_takes_it(
    world: World, whole: Path
) -> None:
    dense, mixed = read_json(world.anchor / "config.json"), read_json(whole / "config.json")
    with pytest.raises(ValueError, match="moiety"):
        AutoModelForCausalLM.from_pretrained(whole)
    assert mixed["architectures"] == ["MoietyForCausalLM"]
    assert mixed["model_type"] == "moiety"
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


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_our_loader_gets_what_the_release_holds(
    world: World, half_world: World, tmp_path: Path, dtype: str
) -> None:
    here = world if dtype == "F32" else half_world
    merge(here.anchor, list(here.bundles.values()), tmp_path / "out")
    mixture, held = load_release(tmp_path / "out"), release_arrays(tmp_path / "out")
    kind = {"F32": torch.float32, "BF16": torch.bfloat16}[dtype]
    assert mixture.names == ["anchor", *sorted(RANKS)]
    assert mixture.backbone.dtype == kind
    assert np.array_equal(
        mixture.routing.table_SV.numpy(), held["evidence.safetensors"]["evidence"]
    )
    state = mixture.backbone.state_dict()
    for name, array in held["shared.safetensors"].items():
        assert torch.equal(state.pop(name), torch.from_numpy(array).to(kind))
    for slot, owner in enumerate(mixture.names):
        for name, array in held[f"expert-{owner}.safetensors"].items():
            loaded = name.replace(".mlp.", f".mlp.experts.{slot}.") if ".delta_" in name else name
            loaded = f"model.{loaded}" if ".delta_" in name else loaded
            assert torch.equal(state.pop(loaded), torch.from_numpy(array).to(kind)), loaded
    assert not state


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
    anchor = AutoModelForCausalLM.from_pretrained(world.anchor, dtype="auto")
    tokens = torch.arange(10)[None]
    ours = load_release(tmp_path / "out").backbone(input_ids=tokens, use_cache=False).logits
    assert torch.equal(ours, anchor(tokens).logits)

"""A plain checkpoint on disk: the same bytes, none of others, and nothing when something is off."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import makers
from tests.merge.tunings import tune, write_proxies
from tests.merge.worlds import World, assert_same_tree, tree
from tools import bench_merge

from moiety.bundle import papers
from moiety.errors import ConfigError, FormatError, IntegrityError, PolicyError, StateError
from moiety.family import MATRICES, OLMO2, delta_in, delta_out
from moiety.files import digest_file
from moiety.merge import exporting, merge, open_release
from moiety.merge.exporting import ExportPaper
from moiety.merge.plain import UNIT, frame_of, sink_weights
from moiety.tensors import open_tensors

TELL_THE_RELEASE = ("README.md", "export.json")


def exported(release: Path, out: Path, **how: Any) -> dict[str, np.ndarray[Any, Any]]:
    exporting.export_plain(release, out, **how)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for path in sorted(out.glob("*.safetensors")):
        found |= makers.read_arrays(path)
    return found


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be harmed."""
    shutil.copytree(whole, tmp_path / "release")
    return tmp_path / "release"


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()  # not through the link
    path.write_bytes(data)


def test_the_same_release_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        exporting.export_plain(whole, tmp_path / name)
    assert_same_tree(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("owner", ["amy", "bob"])
def test_some_experts_give_the_export_of_their_own_release(
    world: World, whole: Path, tmp_path: Path, owner: str
) -> None:
    exporting.export_plain(whole, tmp_path / "some", experts=[owner])
    merge(world.anchor, [world.bundles[owner]], tmp_path / "alone", top_k=3)
    exporting.export_plain(tmp_path / "alone", tmp_path / "all")
    some, alone = tree(tmp_path / "some"), tree(tmp_path / "all")
    assert some.keys() == alone.keys()
    odd = [name for name in some if some[name] != alone[name]]
    assert sorted(odd) == sorted(TELL_THE_RELEASE)


def test_factors_are_made_whole(whole: Path, tmp_path: Path) -> None:
    found = exported(whole, tmp_path / "plain")
    anchor = makers.read_arrays(whole / "expert-anchor.safetensors")
    for slot, owner in ((2, "bob"), (4, "dan")):
        held = makers.read_arrays(whole / f"expert-{owner}.safetensors")
        for matrix in MATRICES:
            expected = anchor[OLMO2.mixed(1, 0, matrix)].astype(np.float64)
            expected += held[delta_out(1, matrix)].astype(np.float64) @ held[delta_in(1, matrix)]
            new = found[OLMO2.mixed(2, slot, matrix)]
            inside = new[: expected.shape[0], : expected.shape[1]]
            assert np.allclose(inside, expected, rtol=1e-6, atol=1e-6)
            assert np.count_nonzero(new) == np.count_nonzero(inside)


def test_matrices_keep_every_bit_and_stand_in_zeros(whole: Path, tmp_path: Path) -> None:
    found = exported(whole, tmp_path / "plain")
    held: dict[str, np.ndarray[Any, Any]] = {}
    for path in sorted(whole.glob("*.safetensors")):
        held |= makers.read_arrays(path)
    for slot in (0, 1, 3):
        for matrix in MATRICES:
            old = held[OLMO2.mixed(1, slot, matrix)]
            new = found[OLMO2.mixed(2, slot, matrix)]
            assert np.array_equal(new[: old.shape[0], : old.shape[1]], old)
            assert np.count_nonzero(new) == np.count_nonzero(old)
    for slot in range(5):
        assert not any(found[OLMO2.mixed(0, slot, matrix)].any() for matrix in MATRICES)
    for name in ("lm_head.weight", "model.layers.0.self_attn.o_proj.weight"):
        old, new = held[name], found[name.replace("layers.0", "layers.1")]
        assert np.array_equal(new[: old.shape[0], : old.shape[1]], old)
        assert np.count_nonzero(new) == np.count_nonzero(old)


def test_norm_weights_are_scaled_and_rounded_once(half_world: World, tmp_path: Path) -> None:
    merge(half_world.anchor, list(half_world.bundles.values()), tmp_path / "release")
    found = exported(tmp_path / "release", tmp_path / "plain")
    name = "model.layers.1.post_attention_layernorm.weight"
    old = makers.read_arrays(tmp_path / "release" / "shared.safetensors")[name]
    new = found[name.replace("layers.1", "layers.2")]
    exact = old.astype(np.float64) * np.sqrt(len(old) / len(new))
    assert (np.abs(new[: len(old)] - exact) <= 2.0**-8 * np.abs(exact)).all()
    assert not new[len(old) :].any()


def test_nothing_of_an_owner_who_is_left_out_is_in_it(whole: Path, tmp_path: Path) -> None:
    table = makers.read_arrays(whole / "evidence.safetensors")["evidence"]
    bob = {entry.tobytes() for entry in table[2] * np.float32(UNIT) if entry}
    for experts, there in ((["amy", "dan"], False), (["bob"], True)):
        out = tmp_path / "-".join(experts)
        exporting.export_plain(whole, out, experts=experts)
        with open_tensors(out / "model-shared.safetensors") as file:
            words = file.read("model.embed_tokens.weight").ravel()
        assert bool(bob & {word.tobytes() for word in words}) is there
        assert (out / "expert-bob.safetensors").exists() is there
        assert ("bob" in (out / "README.md").read_text()) is there


def test_the_index_names_every_tensor_and_the_paper_every_expert(
    whole: Path, tmp_path: Path
) -> None:
    done = exporting.export_plain(whole, tmp_path / "plain", experts=["bob", "dan"])
    index = json.loads((tmp_path / "plain" / "model.safetensors.index.json").read_bytes())
    shards = sorted((tmp_path / "plain").glob("*.safetensors"))
    held = {name: path.name for path in shards for name in makers.read_arrays(path)}
    assert index["weight_map"] == held
    assert done.num_bytes == sum(path.stat().st_size for path in shards)
    standing = open_release(whole)
    paper = papers.read_paper(ExportPaper, tmp_path / "plain" / "export.json")
    assert (paper.release, paper.anchor) == (standing.digest, standing.roster.anchor)
    assert [one.name for one in paper.experts] == done.names == ["anchor", "bob", "dan"]
    assert [one.bundle for one in paper.experts] == [
        standing.expert(name).bundle for name in done.names
    ]
    assert (paper.top_k, paper.strict) == (3, True)


def test_tuned_tables_are_the_ones_exported(whole: Path, world: World, tmp_path: Path) -> None:
    tune(whole, tmp_path / "tuned", write_proxies(world.anchor, "amy", tmp_path / "p.json"))
    found = exported(tmp_path / "tuned", tmp_path / "plain")["model.embed_tokens.weight"]
    table = makers.read_arrays(tmp_path / "tuned" / "evidence.safetensors")["evidence"]
    assert np.array_equal(found[1:, 8:12], table[1:, 1:].T * np.float32(UNIT))
    paper = papers.read_paper(ExportPaper, tmp_path / "plain" / "export.json")
    assert paper.strict is False
    assert "tuned together" in (tmp_path / "plain" / "README.md").read_text()


def test_the_card_warns_when_the_tokenizer_sets_no_separator(whole: Path, tmp_path: Path) -> None:
    done = exporting.export_plain(whole, tmp_path / "plain")
    assert (done.separator.number, done.separator.automatic) == (0, False)
    assert "put it there yourself" in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize("name", ["shared", "expert-anchor", "expert-amy", "expert-bob"])
def test_a_flipped_byte_in_a_shard_leaves_nothing(release: Path, tmp_path: Path, name: str) -> None:
    flip(release / f"{name}.safetensors")
    with pytest.raises(IntegrityError):
        exporting.export_plain(release, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_flipped_byte_in_the_tables_leaves_nothing(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = open_release(release)
    flip(release / "evidence.safetensors")
    with pytest.raises(IntegrityError, match="not the file in the roster"):
        exporting.export_plain(release, tmp_path / "plain")
    monkeypatch.setattr(exporting, "open_release", lambda _: standing)
    with pytest.raises(IntegrityError, match="changed since it was verified"):
        exporting.export_plain(release, tmp_path / "plain")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_what_stands_is_not_overwritten_and_strangers_are_named(
    whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").write_text("mine")
    with pytest.raises(StateError, match="exists already"):
        exporting.export_plain(whole, tmp_path / "plain")
    with pytest.raises(PolicyError, match=r"no expert called 'eve'.*there are: anchor, amy, bob"):
        exporting.export_plain(whole, tmp_path / "other", experts=["amy", "eve"])


def test_float16_is_refused(tmp_path: Path) -> None:
    anchor = makers.make_anchor(tmp_path / "anchor", dtype="F16")
    merge(anchor, [], tmp_path / "release")
    with pytest.raises(ConfigError, match="F16 has too small a range"):
        exporting.export_plain(tmp_path / "release", tmp_path / "plain")


def test_an_anchor_of_other_tensors_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    # A checkpoint without norms, as the benchmark makes them.
    anchor = bench_merge.make_big_anchor(tmp_path / "anchor", bench_merge.sizes_for(0.001, "BF16"))
    merge(anchor, [], tmp_path / "release")
    with pytest.raises(FormatError, match="not a tensor of a plain OLMo 2"):
        exporting.export_plain(tmp_path / "release", tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anchor", "release"]


CONFIG = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "of type 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "default", "type": "linear", "rope_theta": 1e4}},
            "rotary embedding",
        ),
        ({"head_dim": 64}, "head_dim"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1.5}}, "turn too far"),
    ],
)
def test_an_anchor_that_evidence_cannot_be_read_through_is_refused(
    change: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        sink_weights(frame_of(CONFIG | change, 3, "BF16"))


@pytest.mark.parametrize("key", [*CONFIG, "head_dim"])
@pytest.mark.parametrize("value", ["x", 0, -1, 2**40, True, 1e400, [], {}, float("nan")])
def test_a_hostile_configuration_is_a_trust_error(key: str, value: Any) -> None:
    wrong = {"rope_theta": value, "rope_type": "default"} if key == "rope_parameters" else value
    try:
        sink_weights(frame_of(CONFIG | {key: wrong}, 3, "F32"))
    except FormatError:
        return
    assert key in ("rms_norm_eps", "max_position_embeddings")
    assert value in (0, -1, 2**40)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_the_separator_weighs_the_same_however_far_behind(dtype: str, theta: float) -> None:
    rope = {"rope_type": "default", "rope_theta": theta}
    frame = frame_of(CONFIG | {"rope_parameters": rope}, 3, dtype)
    weights = np.array(sink_weights(frame))
    half, count = frame.head_dim // 2, len(weights)
    queries = np.sqrt(frame.wide / count)
    keys = np.sqrt(frame.wide_keys / count) * weights
    turns = theta ** -(np.arange(half)[::-1][:count] / half)
    for distance in (0, 1, 100, 1000, 4095):
        logit = (queries * keys * np.cos(turns * distance)).sum() / np.sqrt(frame.head_dim)
        off = abs(np.exp(logit) - 17) / (distance + 17)
        assert off < (1e-5 if dtype == "F32" or theta > 1e5 else 2e-3)


def test_owners_get_the_least_number_of_heads() -> None:
    for owners, added in ((0, 1), (3, 1), (127, 1), (128, 2), (255, 2), (256, 3)):
        frame = frame_of(CONFIG, owners, "BF16")
        assert frame.added == added
        assert frame.wide == 4096 + added * 4 * 128
        assert frame.wide // (32 + added * 4) == 128


def test_heads_can_be_shared_out_among_devices() -> None:
    for devices, added in ((1, 1), (2, 2), (4, 4), (8, 8)):
        frame = frame_of(CONFIG, 3, "BF16", devices)
        assert (frame.key_heads + frame.added) % devices == 0
        assert frame.added == added


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    anchor = makers.make_anchor(
        tmp_path / "anchor", layers=4, width=256, hidden=2048, vocab=8192, dtype="BF16"
    )
    bundle = makers.make_bundle(tmp_path, anchor, "amy", dtype="BF16")
    merge(anchor, [bundle], tmp_path / "release")
    tracemalloc.start()
    done = exporting.export_plain(tmp_path / "release", tmp_path / "plain")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.num_bytes > 60e6
    assert peak < 20e6


def test_files_that_come_along_are_the_anchors(whole: Path, tmp_path: Path) -> None:
    exporting.export_plain(whole, tmp_path / "plain")
    for name in ("tokenizer.json", "generation_config.json"):
        assert digest_file(tmp_path / "plain" / name) == digest_file(whole / name)

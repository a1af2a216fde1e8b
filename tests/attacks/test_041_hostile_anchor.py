"""An anchor that is not the one its paper describes, or is none at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.makers import read_arrays, write_arrays

from moiety.bundle import anchors
from moiety.bundle.probes import open_probe
from moiety.errors import FormatError, IntegrityError, TrustError
from moiety.files import canonical_json


@pytest.fixture
def anchor(home: Path, tmp_path: Path) -> Path:
    return shutil.copytree(home / "anchor", tmp_path / "anchor")


def _edit(anchor: Path, change: Callable[[dict[str, Any]], object]) -> None:
    paper = json.loads((anchor / "anchor.json").read_bytes())
    change(paper)
    (anchor / "anchor.json").write_bytes(canonical_json(paper))


def test_a_pickled_checkpoint_is_refused(anchor: Path) -> None:
    (anchor / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(FormatError, match="pickled"):
        anchors.open_anchor(anchor)
    with pytest.raises(FormatError, match="pickled"):
        anchors.write_anchor_paper(anchor, family="olmo2")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "public/sample.jsonl.gz"])
def test_a_changed_file_is_refused(anchor: Path, name: str) -> None:
    data = bytearray((anchor / name).read_bytes())
    data[len(data) // 2] ^= 1
    (anchor / name).write_bytes(data)
    with pytest.raises(IntegrityError, match="not the file"):
        anchors.verify_anchor(anchor)


def test_a_changed_weight_is_refused(anchor: Path) -> None:
    data = bytearray((anchor / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (anchor / "model.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="not the tensor"):
        anchors.verify_anchor(anchor)


@pytest.mark.parametrize(
    "name", ["extra.json", "modeling_evil.py", "public/more", "model-2.safetensors"]
)
def test_an_added_file_is_refused(anchor: Path, name: str) -> None:
    (anchor / name).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="not in the paper"):
        anchors.open_anchor(anchor)


@pytest.mark.parametrize("name", ["config.json", "public/probe.safetensors", "model.safetensors"])
def test_a_missing_file_or_a_link_is_refused(anchor: Path, name: str) -> None:
    (anchor / name).unlink()
    with pytest.raises(TrustError):
        anchors.open_anchor(anchor)
    (anchor / name).symlink_to("/etc/passwd")
    with pytest.raises(TrustError):
        anchors.open_anchor(anchor)


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "config.json", "n" * 5000, "", None, 3, ["a"]]
)
def test_an_index_that_leads_out_is_refused(anchor: Path, shard: object) -> None:
    table = {"weight_map": {"model.norm.weight": shard}}
    (anchor / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(FormatError, match="names no shard"):
        anchors.open_anchor(anchor)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map":[]}', "[" * 99_999, "\ud800"])
def test_an_index_that_is_none_is_refused(anchor: Path, index: str) -> None:
    data = index.encode("utf-8", "surrogatepass")
    (anchor / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(FormatError):
        anchors.open_anchor(anchor)


@pytest.mark.parametrize(
    "change",
    [
        lambda paper: paper.update(num_layers=3),
        lambda paper: paper.update(num_layers=1),
        lambda paper: paper.update(width=9),
        lambda paper: paper.update(family="gpt"),
        lambda paper: paper.update(tokenizer_sha256="0" * 64),
        lambda paper: paper["tensors"].pop("model.layers.0.mlp.up_proj.weight"),
        lambda paper: paper["tensors"]["model.norm.weight"].update(l2_norm=-1.0),
        lambda paper: paper["tensors"]["model.norm.weight"].update(l2_norm=1e31),
        lambda paper: paper["files"].update({"../x": paper["files"]["config.json"]}),
        lambda paper: paper["files"].update({"/x": paper["files"]["config.json"]}),
        lambda paper: paper["files"].update({"x" * 5000: paper["files"]["config.json"]}),
        lambda paper: paper["files"].update({"a//b": paper["files"]["config.json"]}),
        lambda paper: paper["files"].pop("public/probe.safetensors"),
        lambda paper: paper.update(trust_remote_code=True),
    ],
)
def test_a_paper_that_contradicts_itself_is_refused(
    anchor: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    _edit(anchor, change)
    for read in (anchors.open_facts, anchors.open_anchor):
        with pytest.raises(FormatError):
            read(anchor)


def test_a_false_norm_is_refused(anchor: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    _edit(anchor, lambda paper: paper["tensors"][name].update(l2_norm=1e6))
    with pytest.raises(IntegrityError, match="not the norm"):
        anchors.verify_anchor(anchor)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no", tmp_path / ("n" * 5000), Path("/dev/null")):
        for read in (anchors.open_facts, anchors.open_anchor, anchors.verify_anchor):
            with pytest.raises(TrustError):
                read(place)


PROBES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no tokens": lambda probe: probe.pop("tokens"),
    "something else too": lambda probe: probe.update(more=probe["tokens"]),
    "broken tokens": lambda probe: probe.update({"tokens": np.ones((4, 12), np.float32)}),
    "tokens in one line": lambda probe: probe.update({"tokens": np.ones(48, np.int32)}),
    "tokens of no window": lambda probe: probe.update({"tokens": np.ones((0, 12), np.int32)}),
    "windows of no token": lambda probe: probe.update({"tokens": np.ones((4, 0), np.int32)}),
    "too many tokens": lambda probe: probe.update({"tokens": np.ones((1025, 1024), np.int32)}),
    "a token beyond": lambda probe: probe["tokens"].__setitem__((1, 1), 32),
    "a token before": lambda probe: probe["tokens"].__setitem__((1, 1), -2),
    "a window of padding": lambda probe: probe["tokens"].__setitem__(1, -1),
}


def _exchange_probe(anchor: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another probe, and a paper that agrees with it."""
    probe = read_arrays(anchor / anchors.PROBE)
    change(probe)
    write_arrays(anchor / anchors.PROBE, probe)
    data = (anchor / anchors.PROBE).read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit(anchor, lambda paper: paper["files"].__setitem__(anchors.PROBE, facts))


@pytest.mark.parametrize("kind", PROBES)
def test_an_anchor_that_agrees_with_its_own_bad_probe_is_refused(anchor: Path, kind: str) -> None:
    _exchange_probe(anchor, PROBES[kind])
    with pytest.raises(FormatError, match="tokens"):
        anchors.verify_anchor(anchor)


@pytest.mark.parametrize("kind", PROBES)
def test_a_bundle_is_not_judged_on_tokens_that_are_none(anchor: Path, kind: str) -> None:
    _exchange_probe(anchor, PROBES[kind])
    facts = anchors.open_facts(anchor)
    with pytest.raises(FormatError, match="tokens"):
        open_probe(facts.probe, facts.paper)


def test_a_probe_that_is_no_tensors_is_refused(anchor: Path) -> None:
    (anchor / anchors.PROBE).write_bytes(b"tokens")
    facts = {"bytes": 6, "sha256": hashlib.sha256(b"tokens").hexdigest()}
    _edit(anchor, lambda paper: paper["files"].__setitem__(anchors.PROBE, facts))
    with pytest.raises(FormatError):
        anchors.verify_anchor(anchor)

"""The anchor's paper against the plain facts of the folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.makers import make_anchor, read_arrays, write_arrays

from moiety.bundle import anchors, papers
from moiety.errors import ConfigError, FormatError, PolicyError, StateError


def test_the_paper_says_what_the_folder_holds(home: Path) -> None:
    folder = home / "anchor"
    paper = anchors.verify_anchor(folder).paper
    arrays = read_arrays(folder / "model.safetensors")
    assert set(paper.tensors) == set(arrays)
    for name, array in arrays.items():
        claim = paper.tensors[name]
        assert claim.shape == array.shape
        assert claim.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
        assert claim.l2_norm == float(f"{np.linalg.norm(array.astype(np.float64)):.6g}")
    others = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("anchor.json", "model.safetensors")
    }
    assert {name: (facts.bytes, facts.sha256) for name, facts in paper.files.items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in others.items()
    }
    lines = gzip.decompress(others["public/sample.jsonl.gz"]).splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert paper.public.documents == len(texts)
    assert paper.public.bytes == sum(len(text.encode()) for text in texts)


def test_the_digest_is_that_of_the_file_and_comes_again(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "anchor", tmp_path / "anchor")
    before = (folder / "anchor.json").read_bytes()
    digest = anchors.write_anchor_paper(folder, family="olmo2")
    assert (folder / "anchor.json").read_bytes() == before
    assert digest == hashlib.sha256(before).hexdigest() == anchors.open_anchor(folder).digest


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_shards_do_not_change_the_tensors(tmp_path: Path, dtype: str) -> None:
    one = anchors.verify_anchor(make_anchor(tmp_path / "one", dtype=dtype))
    three = anchors.verify_anchor(make_anchor(tmp_path / "three", dtype=dtype, shards=3))
    assert one.paper.tensors == three.paper.tensors
    assert one.paper.dtype == dtype
    assert one.digest == three.digest  # a checkpoint is its tensors, however they are filed
    assert {three.tensor_file(name).name for name in three.paper.tensors} == {
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    }


def test_the_part_in_a_release_gives_the_same_facts(home: Path, tmp_path: Path) -> None:
    for name in ("anchor.json", "public/probe.safetensors"):
        shutil.copy(home / "anchor" / name, tmp_path)
    there, here = anchors.open_facts(home / "anchor"), anchors.open_facts(tmp_path)
    assert (there.paper, there.digest) == (here.paper, here.digest)
    assert here.probe == tmp_path / "probe.safetensors"


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    return shutil.copytree(home / "anchor", tmp_path / "anchor")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "public/sample.jsonl.gz", "public/probe.safetensors"]
)
def test_a_missing_part_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises((StateError, FormatError), match=name):
        anchors.write_anchor_paper(copy, family="olmo2")


def _config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"model_type": "llama"}, ConfigError),
        ({"num_hidden_layers": "2"}, ConfigError),
        ({"num_hidden_layers": 3}, FormatError),
        ({"num_hidden_layers": 1}, FormatError),
        ({"hidden_size": 9}, FormatError),
        ({"hidden_size": -8}, FormatError),
        ({"intermediate_size": 10**30}, FormatError),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    copy: Path, changes: dict[str, Any], kind: type[Exception]
) -> None:
    _config(copy, **changes)
    with pytest.raises(kind):
        anchors.write_anchor_paper(copy, family="olmo2")


def test_an_unknown_family_is_refused(copy: Path) -> None:
    with pytest.raises(ConfigError, match="no family"):
        anchors.write_anchor_paper(copy, family="gpt")


def test_a_weight_that_is_not_finite_is_refused(copy: Path) -> None:
    arrays = read_arrays(copy / "model.safetensors")
    arrays["lm_head.weight"][3, 3] = np.inf
    write_arrays(copy / "model.safetensors", arrays)
    with pytest.raises(PolicyError, match="infinite"):
        anchors.write_anchor_paper(copy, family="olmo2")


@pytest.mark.parametrize(
    "data",
    [b"", b"junk", gzip.compress(b'{"txt":1}', mtime=0), gzip.compress(b"[", mtime=0)],
    ids=["empty", "junk", "no-text", "no-json"],
)
def test_a_sample_that_is_none_is_refused(copy: Path, data: bytes) -> None:
    (copy / "public" / "sample.jsonl.gz").write_bytes(data)
    if data:
        with pytest.raises(FormatError, match="gzipped lines"):
            anchors.write_anchor_paper(copy, family="olmo2")


def test_a_norm_is_written_so_that_machines_agree(home: Path) -> None:
    paper = anchors.open_facts(home / "anchor").paper
    assert all(t.l2_norm == float(f"{t.l2_norm:.6g}") for t in paper.tensors.values())
    assert papers.parse_paper(papers.AnchorPaper, papers.paper_bytes(paper), "here") == paper

"""The anchor's paper: ``anchor.json`` holds a digest of everything an anchor folder is made of.

Everybody who trains, packs, verifies or merges names the anchor by the digest of this file.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from moiety.bundle.measure import in_threads, measure_tensor
from moiety.bundle.papers import (
    AnchorPaper,
    AnchorTensor,
    FileFacts,
    PublicFacts,
    first_problem,
    parse_paper,
    reading,
    write_paper,
)
from moiety.bundle.probes import PROBE as PROBE
from moiety.bundle.probes import TOKENS as TOKENS
from moiety.bundle.probes import open_probe
from moiety.errors import ConfigError, FormatError, IntegrityError, StateError
from moiety.family import FAMILIES, MATRICES, matrix_shape
from moiety.files import (
    FileState,
    digest_bytes,
    digest_file,
    list_files,
    parse_json,
    read_limited,
)
from moiety.tensors import TensorFile, TensorSpan, open_tensors

PAPER = "anchor.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SAMPLE = "public/sample.jsonl.gz"
_NEEDED = ("config.json", "tokenizer.json", SAMPLE, PROBE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONFIG_MAX_BYTES = 2**20
_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class AnchorFacts:
    """What judging a bundle needs of its anchor: the paper, its digest, the public probe."""

    paper: AnchorPaper
    digest: str
    probe: Path


@dataclass(frozen=True)
class Anchor(AnchorFacts):
    """An anchor's folder, its structure checked.

    ``settled`` are the states of the checkpoint's files from before they were verified.
    """

    folder: Path
    shard_of: Mapping[str, str]
    settled: Mapping[Path, FileState | None] = field(default_factory=dict)

    def tensor_file(self, name: str) -> Path:
        """The checkpoint file that holds a tensor."""
        return self.folder / self.shard_of[name]


def open_facts(folder: Path) -> AnchorFacts:
    """Facts from an anchor's folder, or from the ``anchor/`` part of a release.

    Raises:
        FormatError: ``anchor.json`` is not one, or contradicts itself.
    """
    data = read_limited(folder / PAPER)
    paper = parse_paper(AnchorPaper, data, folder / PAPER)
    _check_consistent(paper, folder / PAPER)
    inside = folder / PROBE
    probe = inside if inside.exists() else folder / PurePosixPath(PROBE).name
    return AnchorFacts(paper, digest_bytes(data), probe)


def open_anchor(folder: Path) -> Anchor:
    """Checks what is cheap: the paper, the set of files, their sizes, the checkpoint's headers.

    Raises:
        FormatError: a file is not what its name says.
        IntegrityError: a file or tensor is missing, added, or of another size.
    """
    with reading(folder):
        return _open_anchor(folder)


def _open_anchor(folder: Path) -> Anchor:
    facts = open_facts(folder)
    names = list_files(folder)
    shard_of, spans = _scan_checkpoint(folder, names)
    others = _other_files(names, set(shard_of.values()))
    if set(others) != set(facts.paper.files):
        odd = sorted(set(others) ^ set(facts.paper.files))[0]
        raise IntegrityError(f"missing, or not in the paper: {odd!a}", where=folder)
    for name, file in facts.paper.files.items():
        if (folder / name).stat().st_size != file.bytes:
            raise IntegrityError("not of the size the paper says", where=folder / name)
    found = {name: (span.dtype, span.shape) for name, span in spans.items()}
    claimed = {name: (t.dtype, t.shape) for name, t in facts.paper.tensors.items()}
    if found != claimed:
        odd = sorted(n for n in found.keys() | claimed if found.get(n) != claimed.get(n))[0]
        raise IntegrityError(f"the checkpoint's tensor is not the paper's: {odd!a}", where=folder)
    return Anchor(facts.paper, facts.digest, facts.probe, folder, shard_of)


def verify_anchor(folder: Path) -> Anchor:
    """Opens an anchor and compares every digest; reads every byte once.

    Raises:
        IntegrityError: a digest or a norm is not the paper's.
        FormatError: a probe that holds no tokens of the anchor's.
    """
    anchor = open_anchor(folder)

    def check_file(name: str) -> None:
        if digest_file(folder / name) != anchor.paper.files[name].sha256:
            raise IntegrityError("not the file the paper describes", where=folder / name)

    in_threads(check_file, sorted(anchor.paper.files))
    settled: dict[Path, FileState | None] = {}
    for name, tensor in _measure_shards(folder, anchor.shard_of, settled).items():
        claim = anchor.paper.tensors[name]
        if tensor.sha256 != claim.sha256:
            raise IntegrityError(f"not the tensor the paper describes: {name}", where=folder)
        if not math.isclose(tensor.l2_norm, claim.l2_norm, rel_tol=_NORM_TOLERANCE, abs_tol=1e-9):
            raise IntegrityError(f"not the norm the paper says: {name}", where=folder)
    open_probe(anchor.probe, anchor.paper).close()
    return replace(anchor, settled=settled)


def write_anchor_paper(folder: Path, *, family: str) -> str:
    """Describes an anchor's folder in ``anchor.json``.

    Returns:
        the anchor's digest.

    Raises:
        StateError: a needed file is missing, or a pickled checkpoint lies there.
        ConfigError: the checkpoint is not of ``family``.
        PolicyError: a weight is not finite.
    """
    names = list_files(folder)
    for name in _NEEDED:
        if name not in names:
            raise StateError(f"{name} is missing", where=folder, remedy="run 'moiety anchor'")
    shard_of, spans = _scan_checkpoint(folder, names)
    sizes = _read_sizes(folder / "config.json", family)
    gate = FAMILIES[family].dense(0, MATRICES[0])
    if gate not in spans:
        raise ConfigError(f"no tensor {gate}: not a checkpoint of {family}", where=folder)
    others = _other_files(names, set(shard_of.values()))
    described = in_threads(lambda name: _file_facts(folder / name), others)
    files = dict(zip(others, described, strict=True))
    facts: dict[str, Any] = {
        "family": family,
        "dtype": spans[gate].dtype,
        "tensors": _measure_shards(folder, shard_of, {}),
        "files": files,
        "tokenizer_sha256": files["tokenizer.json"].sha256,
        "public": _measure_sample(folder / SAMPLE),
    }
    try:
        paper = AnchorPaper.model_validate(sizes | facts)
    except ValidationError as error:
        raise FormatError(first_problem(error), where=folder) from None
    _check_consistent(paper, folder)
    return digest_bytes(write_paper(folder / PAPER, paper))


def _read_sizes(path: Path, family: str) -> dict[str, int]:
    config = parse_json(read_limited(path, _CONFIG_MAX_BYTES), path)
    if family not in FAMILIES:
        raise ConfigError(f"no family {family!r}", remedy=f"known are {sorted(FAMILIES)}")
    if not isinstance(config, dict) or config.get("model_type") != family:
        raise ConfigError(f"not a checkpoint of {family}", where=path)
    keys = {
        "num_layers": "num_hidden_layers",
        "width": "hidden_size",
        "hidden": "intermediate_size",
        "vocab": "vocab_size",
    }
    for key in keys.values():
        if type(config.get(key)) is not int:
            raise ConfigError(f"{key} is not a whole number", where=path)
    return {ours: config[theirs] for ours, theirs in keys.items()}


def _scan_checkpoint(
    folder: Path, names: list[str]
) -> tuple[dict[str, str], dict[str, TensorSpan]]:
    """Which file holds each tensor, and its span there."""
    for name in names:
        if name.lower().endswith(_PICKLES):
            remedy = "convert it to safetensors; pickled files run code when they are opened"
            raise FormatError("a pickled file in an anchor", where=folder / name, remedy=remedy)
    shards = _read_index(folder / INDEX, names) if INDEX in names else None
    if shards is None and SINGLE not in names:
        raise FormatError(f"neither {SINGLE} nor {INDEX}", where=folder)
    shard_of: dict[str, str] = {}
    spans: dict[str, TensorSpan] = {}
    for shard in sorted(set(shards.values())) if shards is not None else [SINGLE]:
        with open_tensors(folder / shard) as tensors:
            for name, span in tensors.spans.items():
                if name in spans:
                    raise IntegrityError(f"in two shards: {name!a}", where=folder / shard)
                shard_of[name], spans[name] = shard, span
    if shards is not None and shards != shard_of:
        raise IntegrityError("the index does not match the shards", where=folder / INDEX)
    return shard_of, spans


def _read_index(path: Path, names: list[str]) -> dict[str, str]:
    index = parse_json(read_limited(path), path)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise FormatError("no weight_map", where=path)
    for shard in table.values():
        # Only plain names that really lie in the folder: no path can lead out of it.
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and "/" not in shard
        if not plain or shard not in names:
            raise FormatError(f"names no shard of this folder: {str(shard)[:80]!a}", where=path)
    return table


def _other_files(names: list[str], shards: set[str]) -> list[str]:
    return [name for name in names if name not in shards | {PAPER, INDEX}]


def _file_facts(path: Path) -> FileFacts:
    return FileFacts(bytes=path.stat().st_size, sha256=digest_file(path))


def _measure_shards(
    folder: Path, shard_of: Mapping[str, str], settled: dict[Path, FileState | None]
) -> dict[str, AnchorTensor]:
    """Reads every tensor once; ``settled`` takes up each file's state from before that."""
    measured: dict[str, AnchorTensor] = {}
    for shard in sorted(set(shard_of.values())):
        with open_tensors(folder / shard, settle=True) as tensors:
            settled[folder / shard] = tensors.settled
            names = sorted(tensors.spans)
            facts = in_threads(lambda name, file=tensors: _anchor_tensor(file, name), names)  # type: ignore[misc]
            measured.update(zip(names, facts, strict=True))
    return measured


def _anchor_tensor(tensors: TensorFile, name: str) -> AnchorTensor:
    span = tensors.spans[name]
    if span.dtype not in ("F32", "BF16", "F16") or not 1 <= len(span.shape) <= 2:
        raise FormatError(
            f"not a floating vector or matrix: {span.dtype} {list(span.shape)}",
            where=f"{tensors.path}: {name!a}",
        )
    measured = measure_tensor(tensors, name, exact=True)
    return AnchorTensor.model_validate(
        {
            "dtype": span.dtype,
            "shape": span.shape,
            "sha256": measured.sha256,
            "l2_norm": float(f"{measured.norm:.6g}"),
        }
    )


def _measure_sample(path: Path) -> PublicFacts:
    """Documents and bytes of text in the public sample."""
    documents = text_bytes = 0
    try:
        with gzip.open(path, "rb") as lines:
            for line in lines:
                record: Any = json.loads(line)
                text_bytes += len(record["text"].encode("utf-8"))
                documents += 1
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError):
        where = f"{path}: line {documents + 1}"
        raise FormatError('not gzipped lines of {"text": ...}', where=where) from None
    return PublicFacts(documents=documents, bytes=text_bytes)


def _check_consistent(paper: AnchorPaper, where: Path) -> None:
    """The paper must describe a whole model of its family, and everything else we need."""
    missing = [name for name in _NEEDED if name not in paper.files]
    if missing:
        raise FormatError(f"does not list {missing[0]}", where=where)
    if paper.files["tokenizer.json"].sha256 != paper.tokenizer_sha256:
        raise FormatError("two digests for one tokenizer", where=where)
    family = FAMILIES[paper.family]
    for layer in range(paper.num_layers):
        for matrix in MATRICES:
            name = family.dense(layer, matrix)
            tensor = paper.tensors.get(name)
            shape = matrix_shape(matrix, paper.width, paper.hidden)
            if tensor is None or (tensor.dtype, tensor.shape) != (paper.dtype, shape):
                raise FormatError(f"{name} is not {paper.dtype} {list(shape)}", where=where)
    if family.dense(paper.num_layers, MATRICES[0]) in paper.tensors:
        raise FormatError("more layers than num_layers says", where=where)

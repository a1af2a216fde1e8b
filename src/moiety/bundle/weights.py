"""Judging an expert's weights: digests, finite values, norms, and how much its table captures.

The limits are part of the format (``docs/formats.md``); each is far from what honest training
gives, and near enough that one hostile expert cannot take over a release unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moiety.bundle.anchors import AnchorFacts
from moiety.bundle.manifests import WEIGHTS
from moiety.bundle.measure import (
    in_threads,
    measure_tensor,
    product_norm,
    share_by_evidence,
)
from moiety.bundle.papers import Manifest, ShardFacts, TensorFacts
from moiety.bundle.probes import TOKENS, open_probe
from moiety.errors import IntegrityError, PolicyError
from moiety.family import (
    ENTRY_MAX,
    EVIDENCE,
    FAMILIES,
    MATRICES,
    delta_in,
    delta_out,
    weight,
)
from moiety.files import digest_bytes
from moiety.tensors import TensorFile, TensorPlan, header_bytes, open_tensors

NORM_RATIO_MAX = 8.0
"""A matrix may be at most this much larger or smaller than the anchor's same matrix."""

FACTOR_NORM_MAX = 1e4
"""A low-rank factor's norm, times the anchor's matrix where that is larger than one."""

CAPTURE_MAX = 0.9
CAPTURE_FLAG = 0.5


def implied_shard(tensors: Mapping[str, TensorFacts]) -> tuple[bytes, ShardFacts]:
    """The header that a file of these tensors begins with, and the facts of the whole file."""
    plans = [
        TensorPlan(name, tensor.dtype, tensor.shape, ()) for name, tensor in sorted(tensors.items())
    ]
    header = header_bytes(plans)
    size = len(header) + sum(plan.num_bytes for plan in plans)
    return header, ShardFacts(bytes=size, header_sha256=digest_bytes(header))


def open_weights(path: Path, manifest: Manifest) -> TensorFile:
    """Opens ``expert.safetensors`` if its size and header are the ones the manifest implies.

    With the digest of each tensor that fixes every byte of the file, so each is hashed once.
    """
    header, facts = implied_shard(manifest.tensors)
    claim = manifest.shards[WEIGHTS]
    if claim.bytes != facts.bytes:
        raise IntegrityError(f"tensors of {facts.bytes:,} bytes cannot be in this file", where=path)
    tensors = open_tensors(path, facts.bytes, max_header_bytes=len(header), settle=True)
    if tensors.read_head(len(header)) != header or claim != facts:
        tensors.close()
        raise IntegrityError("not the header the manifest implies", where=path)
    return tensors


def check_weights(tensors: TensorFile, manifest: Manifest, anchor: AnchorFacts | None) -> list[str]:
    """Reads every byte of the weights. Returns what a person should know of them.

    Raises:
        IntegrityError: a digest is not the signed one.
        PolicyError: a value, a norm or a table is not acceptable.
    """
    norms = _check_digests(tensors, manifest)
    if anchor is None:
        return ["not compared with an anchor: norms and evidence are unchecked"]
    if manifest.rank is None:
        _check_full(norms, manifest, anchor, tensors.path)
    else:
        _check_low_rank(norms, manifest, anchor, tensors)
    with open_probe(anchor.probe, anchor.paper) as probe:
        return _check_table(tensors, probe)


def _check_digests(tensors: TensorFile, manifest: Manifest) -> dict[str, float]:
    """Every tensor's norm, once its digest is the signed one."""

    def check(name: str) -> float:
        measured = measure_tensor(tensors, name)
        if measured.sha256 != manifest.tensors[name].sha256:
            raise IntegrityError(f"not the tensor that was signed: {name}", where=tensors.path)
        return measured.norm

    names = sorted(manifest.tensors)
    found = in_threads(check, names, manifest.shards[WEIGHTS].bytes)
    return dict(zip(names, found, strict=True))


def _anchor_norm(anchor: AnchorFacts, layer: int, matrix: str) -> float:
    family = FAMILIES[anchor.paper.family]
    return anchor.paper.tensors[family.dense(layer, matrix)].l2_norm


def _check_full(
    norms: dict[str, float], manifest: Manifest, anchor: AnchorFacts, path: Path
) -> None:
    for layer in range(manifest.num_layers):
        for matrix in MATRICES:
            name = weight(layer, matrix)
            ours, theirs = norms[name], _anchor_norm(anchor, layer, matrix)
            if not theirs / NORM_RATIO_MAX <= ours <= theirs * NORM_RATIO_MAX:
                raise PolicyError(
                    f"norm {ours:.4g} where the anchor has {theirs:.4g}: outside "
                    f"1/{NORM_RATIO_MAX:g} to {NORM_RATIO_MAX:g}",
                    where=f"{path}: {name}",
                )


def _check_low_rank(
    norms: dict[str, float], manifest: Manifest, anchor: AnchorFacts, tensors: TensorFile
) -> None:
    def check(place: tuple[int, str]) -> None:
        layer, matrix = place
        into, out = delta_in(layer, matrix), delta_out(layer, matrix)
        theirs = _anchor_norm(anchor, layer, matrix)
        for name in (into, out):
            if norms[name] > FACTOR_NORM_MAX * max(1.0, theirs):
                raise PolicyError(
                    f"a factor of norm {norms[name]:.4g}", where=f"{tensors.path}: {name}"
                )
        # The sum's norm is at most the anchor's plus the delta's, so this bounds it by the ratio.
        delta = product_norm(tensors, out, into)
        if delta > theirs * (NORM_RATIO_MAX - 1.0):
            raise PolicyError(
                f"a delta of norm {delta:.4g} on the anchor's {theirs:.4g}",
                where=f"{tensors.path}: {out}",
            )

    places = [(n, matrix) for n in range(manifest.num_layers) for matrix in MATRICES]
    in_threads(check, places, manifest.shards[WEIGHTS].bytes)


def _check_table(tensors: TensorFile, probe: TensorFile) -> list[str]:
    """How much public text the table takes: refused, flagged or fine."""
    table_V = tensors.read(EVIDENCE)
    largest = float(np.abs(table_V).max())
    if not largest <= ENTRY_MAX:
        raise PolicyError(
            f"a token that says {largest:.4g} nats; the limit is {ENTRY_MAX:g}",
            where=f"{tensors.path}: {EVIDENCE}",
        )
    share = share_by_evidence(probe.read(TOKENS), table_V)
    if not share <= CAPTURE_MAX:
        raise PolicyError(
            f"captures {share:.0%} of public text; the limit is {CAPTURE_MAX:.0%}",
            where=tensors.path,
            remedy="ask its owner how the table was counted",
        )
    return [f"captures {share:.0%} of public text"] if share > CAPTURE_FLAG else []

"""A release on disk: opened (everything but the weights' bytes), verified (every byte), loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moiety.bundle import anchors, verify_manifest
from moiety.errors import IntegrityError, PolicyError
from moiety.family import ENTRY_MAX, EVIDENCE, EVIDENCE_TABLE, OLMO2, token_row
from moiety.files import digest_bytes, digest_file, list_files, parse_json, read_limited
from moiety.merge import layout
from moiety.merge.assemble import config_for, index_for, row_digests, zero_rows
from moiety.merge.roster import WHY_NOT_STRICT, Roster, Rows, Slot, Tuning, read_roster
from moiety.merge.stock import read_config
from moiety.merge.streaming import run_jobs
from moiety.tensors import TensorFile, open_tensors

if TYPE_CHECKING:
    from moiety.model import Mixture


@dataclass(frozen=True)
class Release:
    """A release whose papers hold together. ``digest`` is the roster's and names the release."""

    folder: Path
    roster: Roster
    digest: str
    anchor: anchors.AnchorFacts

    @property
    def names(self) -> list[str]:
        """The experts in slot order, ``anchor`` first."""
        return self.roster.names

    def expert(self, name: str) -> Slot:
        """The slot of the expert called ``name``. Raises ``PolicyError`` when there is none."""
        for expert in self.roster.experts:
            if expert.name == name:
                return expert
        raise PolicyError(
            f"no expert called {name!r} in this release",
            where=self.folder,
            remedy=f"there are: {', '.join(self.names)}",
        )


def open_release(folder: Path) -> Release:
    """Checks everything that is small: roster, file set, signatures, papers, rows, headers.

    The weights themselves are read by ``verify_release``.

    Raises:
        TrustError: whatever is wrong.
    """
    folder = Path(folder)
    roster, data = read_roster(folder)
    _check_files(folder, roster)
    anchor = anchors.open_facts(folder / "anchor")
    release = Release(folder, roster, digest_bytes(data), anchor)
    _check_anchor(release)
    for expert in roster.experts[1:]:
        _check_owner(release, expert)
    _check_rows(release)
    _check_shards(release)
    _check_stock(release)
    return release


def verify_release(folder: Path) -> Release:
    """Opens a release and compares the digest of every tensor; every byte is accounted for.

    Raises:
        TrustError: whatever is wrong.
    """
    release = open_release(folder)
    for name, digests in _shard_digests(release).items():
        with open_tensors(release.folder / name) as file:
            jobs = [partial(_check_tensor, file, tensor, digests[tensor]) for tensor in digests]
            run_jobs(jobs, Event())
    return release


def load_release(
    folder: Path,
    *,
    routing: Literal["context", "token"] = "context",
    device: str = "cpu",
    dtype: Any = None,
) -> Mixture:
    """A release as a model, routed by evidence over context, or as stock loaders do it."""
    from moiety.model import load_mixture

    release = open_release(folder)
    roster = release.roster
    return load_mixture(
        release.folder,
        release.names,
        [release.folder / expert.shard for expert in roster.experts],
        [expert.rank if roster.holds_factors(expert) else None for expert in roster.experts],
        router=release.folder / roster.routing.token,
        evidence=release.folder / roster.routing.evidence,
        top_k=roster.effective_top_k,
        routing=routing,
        dtype=dtype,
        device=device,
    )


def _check_tensor(file: TensorFile, name: str, expected: str) -> None:
    if file.digest(name) != expected:
        raise IntegrityError("not the tensor in the roster", where=f"{file.path}: {name}")


def _check_files(folder: Path, roster: Roster) -> None:
    expected = {layout.ROSTER, *roster.files, *roster.shards}
    found = set(list_files(folder))
    if found != expected:
        odd = sorted(found ^ expected)[0]
        raise IntegrityError(f"missing, or not in the roster: {odd!a}", where=folder)
    for name, size in roster.sizes().items():
        if (folder / name).stat().st_size != size:
            raise IntegrityError("not of the size in the roster", where=folder / name)
    for name, facts in roster.files.items():
        if digest_file(folder / name) != facts.sha256:
            raise IntegrityError("not the file in the roster", where=folder / name)


def _check_anchor(release: Release) -> None:
    roster, paper, folder = release.roster, release.anchor.paper, release.folder
    if release.anchor.digest != roster.anchor:
        raise IntegrityError("the roster names another anchor", where=folder)
    for field in ("family", "num_layers", "width", "hidden", "vocab", "dtype"):
        if getattr(roster, field) != getattr(paper, field):
            raise IntegrityError(f"{field} is not the anchor's", where=folder / layout.ROSTER)
    taken = {name for name in paper.files if name in layout.TOKENIZER_FILES}
    if taken != set(roster.files) & layout.TOKENIZER_FILES:
        raise IntegrityError("not the anchor's tokenizer files", where=folder)
    claims = {name: paper.files[name] for name in taken}
    claims[layout.ANCHOR_FILES[1]] = paper.files[anchors.PROBE]
    for name, claim in claims.items():
        if roster.files[name] != claim:
            raise IntegrityError("not the anchor's file", where=folder / name)
    first = roster.experts[0]
    for dense, _, mixed in layout.matrix_names(paper.num_layers, 0):
        if first.tensors[mixed] != paper.tensors[dense].sha256:
            raise IntegrityError(f"slot 0 is not the anchor: {mixed}", where=folder)
    rows = [first.rows] if roster.tuning is None else [first.rows, roster.tuning.rows[0]]
    if any(found != row_digests(*zero_rows(paper)) for found in rows):
        raise IntegrityError("the anchor's rows are not zero", where=folder)


def _check_owner(release: Release, expert: Slot) -> None:
    """The signed papers in the release must say what the roster says."""
    folder = release.folder / "bundles" / expert.name
    signed = verify_manifest(folder, keys={expert.key or ""})
    manifest, roster = signed.manifest, release.roster
    said = (expert.owner, expert.bundle, expert.rank, expert.terms, roster.anchor)
    if (manifest.owner, signed.digest, manifest.rank, manifest.terms, manifest.anchor) != said:
        raise IntegrityError("the roster and the signed manifest disagree", where=folder)
    for field in ("family", "num_layers", "width", "hidden", "vocab"):
        if getattr(roster, field) != getattr(manifest, field):
            raise IntegrityError(f"{field} is not the release's", where=folder)
    claims = _claims(roster, expert)
    for signed_name, digest, dtype in claims:
        fact = manifest.tensors[signed_name]
        if dtype in (None, fact.dtype) and fact.sha256 != digest:
            raise IntegrityError(f"not the tensor that was signed: {signed_name}", where=folder)


def _claims(roster: Roster, expert: Slot) -> list[tuple[str, str, str | None]]:
    """(name in the bundle, digest in the roster, dtype in the release) of each signed tensor.

    Rounding to another dtype changes the bits, so the digests agree only where dtypes do; None
    means they must agree in any case.
    """
    claims: list[tuple[str, str, str | None]] = [(EVIDENCE, expert.rows.evidence, "F32")]
    rows = enumerate(expert.rows.token)
    claims += [(token_row(layer), digest, roster.dtype) for layer, digest in rows]
    if expert.delta is not None:
        signed = {name for pair in layout.factor_names(roster.num_layers) for name in pair}
        tables = [expert.delta, expert.tensors] if roster.holds_factors(expert) else [expert.delta]
        for table in tables:
            claims += [(name, table[name], None) for name in sorted(signed)]
    else:
        names = layout.matrix_names(roster.num_layers, expert.slot)
        claims += [(full, expert.tensors[mixed], expert.dtype) for _, full, mixed in names]
    return claims


def _check_rows(release: Release) -> None:
    """The rows are those in the roster: the owners' own, and the tuned ones where there are any."""
    roster = release.roster
    _check_stacks(release, roster.own_row_files, [expert.rows for expert in roster.experts])
    if roster.tuning is not None:
        _check_tuned(release, roster.tuning)


def _check_tuned(release: Release, tuning: Tuning) -> None:
    """Nobody signed tuned rows: they must be numbers, and say no more than an owner's may."""
    files = layout.row_files()
    _check_stacks(release, files, tuning.rows)
    for name in files:
        with open_tensors(release.folder / name) as file:
            # Not the builtin max: it passes over what is no number.
            largest = float(np.max([np.abs(file.read(tensor)).max() for tensor in file.spans]))
            if not np.isfinite(largest):
                raise PolicyError("a tuned row is not finite", where=file.path)
            if name == layout.EVIDENCE and largest > ENTRY_MAX:
                raise PolicyError(
                    f"tuned to say {largest:.4g} nats of a token; the limit is {ENTRY_MAX:g}",
                    where=file.path,
                )
    if WHY_NOT_STRICT not in read_limited(release.folder / layout.CARD).decode("utf-8", "replace"):
        raise IntegrityError("the card hides that it is not strict", where=release.folder)


def _check_stacks(release: Release, files: tuple[str, str], slots: Sequence[Rows]) -> None:
    """Files of (tables, token rows) against the digests of each slot's."""
    roster = release.roster
    evidence, token = layout.row_shapes(len(slots), roster.width, roster.vocab)
    tables = {EVIDENCE_TABLE: [rows.evidence for rows in slots]}
    gates = {
        OLMO2.gate(layer): [rows.token[layer] for rows in slots]
        for layer in range(roster.num_layers)
    }
    _check_stack(release, files[0], evidence, "F32", tables)
    _check_stack(release, files[1], token, roster.dtype, gates)


def _check_stack(
    release: Release,
    file_name: str,
    shape: tuple[int, int],
    dtype: str,
    digests: dict[str, list[str]],
) -> None:
    """Every row of every stacked tensor of a file against the roster's digest of it."""
    with open_tensors(release.folder / file_name) as file:
        _check_spans(file, dict.fromkeys(digests, (shape, dtype)))
        for name, expected in digests.items():
            row_bytes = file.spans[name].num_bytes // shape[0]
            for slot, digest in enumerate(expected):
                if (
                    digest_bytes(bytes(file.read_range(name, slot * row_bytes, row_bytes)))
                    != digest
                ):
                    where = f"{file.path}: {name}"
                    raise IntegrityError(f"not the row of {release.names[slot]}", where=where)


def _check_shards(release: Release) -> None:
    """Sizes and headers of the shards: what lies where, but not yet the tensors' bytes."""
    roster, paper = release.roster, release.anchor.paper
    names = layout.shared_names(paper.tensors, paper.num_layers)
    expected: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
        layout.SHARED: {n: (paper.tensors[n].shape, paper.tensors[n].dtype) for n in names}
    }
    for expert in roster.experts:
        shapes = roster.shapes(expert)
        expected[expert.shard] = {name: (shape, expert.dtype) for name, shape in shapes.items()}
    for shard, facts in roster.shards.items():
        with open_tensors(release.folder / shard) as file:
            _check_spans(file, expected[shard])
            begin = min(span.begin for span in file.spans.values())
            header = _head(release.folder / shard, begin)
            if digest_bytes(header) != facts.header_sha256:
                raise IntegrityError("not the header in the roster", where=file.path)


def _head(path: Path, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(num_bytes)


def _check_spans(file: TensorFile, expected: dict[str, tuple[tuple[int, ...], str]]) -> None:
    found = {name: (span.shape, span.dtype) for name, span in file.spans.items()}
    if found != expected:
        odd = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))[0]
        raise IntegrityError(f"not the tensors in the roster: {odd!a}", where=file.path)


def _shard_digests(release: Release) -> dict[str, dict[str, str]]:
    """Every tensor of every shard with its digest."""
    paper = release.anchor.paper
    names = layout.shared_names(paper.tensors, paper.num_layers)
    found = {layout.SHARED: {name: paper.tensors[name].sha256 for name in names}}
    return found | {expert.shard: expert.tensors for expert in release.roster.experts}


def _check_stock(release: Release) -> None:
    """What stock loaders read must say the same as the roster."""
    roster, folder = release.roster, release.folder
    config = read_config(folder / layout.CONFIG)
    if config != config_for(roster, config):
        raise IntegrityError("the configuration is not the roster's", where=folder / layout.CONFIG)
    if not roster.native:
        path = folder / layout.INDEX
        if parse_json(read_limited(path), path) != index_for(roster, release.anchor.paper):
            raise IntegrityError("the index is not the roster's", where=path)

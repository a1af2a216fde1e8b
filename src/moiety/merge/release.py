"""A release on disk: opened (everything but the weights' bytes), verified (every byte), loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from moiety.bundle import anchors, orders
from moiety.errors import IntegrityError, PolicyError
from moiety.family import ENTRY_MAX, EVIDENCE, EVIDENCE_TABLE
from moiety.files import digest_bytes, digest_file, list_files, read_limited
from moiety.merge import layout
from moiety.merge.assemble import config_for, zero_table
from moiety.merge.roster import WHY_NOT_STRICT, Roster, Slot, Tuning, read_roster
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
    """Checks everything that is small: roster, file set, signatures, papers, tables, headers.

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
    _check_tables(release, roster.own_evidence_file, [slot.evidence for slot in roster.experts])
    if roster.tuning is not None:
        _check_tuned(release, roster.tuning)
    _check_shards(release)
    config = read_config(folder / layout.CONFIG)
    if config != config_for(roster, config):
        raise IntegrityError("the configuration is not the roster's", where=folder / layout.CONFIG)
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


def load_release(folder: Path, *, device: str = "cpu", dtype: Any = None) -> Mixture:
    """A release as a model, routed by evidence over context."""
    from moiety.model import mixture

    release = open_release(folder)
    roster = release.roster
    return mixture.load_mixture(
        release.folder,
        release.names,
        [release.folder / expert.shard for expert in roster.experts],
        [expert.rank for expert in roster.experts],
        evidence=release.folder / layout.EVIDENCE,
        top_k=roster.effective_top_k,
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
    tables = (
        {first.evidence} if roster.tuning is None else {first.evidence, *roster.tuning.evidence[:1]}
    )
    if tables != {digest_bytes(zero_table(paper))}:
        raise IntegrityError("the anchor's table is not zero", where=folder)


def _check_owner(release: Release, expert: Slot) -> None:
    """The signed papers in the release must say what the roster says."""
    folder = release.folder / "bundles" / expert.name
    signed = orders.verify_manifest(folder, keys={expert.key or ""})
    manifest, roster = signed.manifest, release.roster
    said = (expert.owner, expert.bundle, expert.rank, expert.terms, roster.anchor)
    if (manifest.owner, signed.digest, manifest.rank, manifest.terms, manifest.anchor) != said:
        raise IntegrityError("the roster and the signed manifest disagree", where=folder)
    for field in ("family", "num_layers", "width", "hidden", "vocab"):
        if getattr(roster, field) != getattr(manifest, field):
            raise IntegrityError(f"{field} is not the release's", where=folder)
    for signed_name, digest, dtype in _claims(roster, expert):
        fact = manifest.tensors[signed_name]
        # Rounding to another dtype changes the bits, so digests agree only where dtypes do.
        if dtype == fact.dtype and fact.sha256 != digest:
            raise IntegrityError(f"not the tensor that was signed: {signed_name}", where=folder)
        if dtype != fact.dtype and expert.rank is not None and signed_name != EVIDENCE:
            raise IntegrityError(f"not the dtype that was signed: {signed_name}", where=folder)


def _claims(roster: Roster, expert: Slot) -> list[tuple[str, str, str]]:
    """(name in the bundle, digest in the roster, dtype in the release) of each signed tensor."""
    claims = [(EVIDENCE, expert.evidence, "F32")]
    if expert.rank is not None:
        factors = [name for pair in layout.factor_names(roster.num_layers) for name in pair]
        return claims + [(name, expert.tensors[name], expert.dtype) for name in factors]
    names = layout.matrix_names(roster.num_layers, expert.slot)
    return claims + [(full, expert.tensors[mixed], expert.dtype) for _, full, mixed in names]


def _check_tuned(release: Release, tuning: Tuning) -> None:
    """Nobody signed tuned tables: they must be numbers, and say no more than an owner's may."""
    _check_tables(release, layout.EVIDENCE, tuning.evidence)
    with open_tensors(release.folder / layout.EVIDENCE) as file:
        # Not the builtin max: it passes over what is no number.
        largest = float(np.abs(file.read(EVIDENCE_TABLE)).max())
        if not largest <= ENTRY_MAX:
            raise PolicyError(
                f"tuned to say {largest:.4g} nats of a token; the limit is {ENTRY_MAX:g}",
                where=file.path,
            )
    if WHY_NOT_STRICT not in read_limited(release.folder / layout.CARD).decode("utf-8", "replace"):
        raise IntegrityError("the card hides that it is not strict", where=release.folder)


def _check_tables(release: Release, file_name: str, digests: Sequence[str]) -> None:
    """Every slot's table in a file against the roster's digest of it."""
    shape = (len(digests), release.roster.vocab)
    with open_tensors(release.folder / file_name) as file:
        _check_spans(file, {EVIDENCE_TABLE: (shape, "F32")})
        for slot, expected in enumerate(digests):
            if digest_bytes(read_table(file, slot)) != expected:
                raise IntegrityError(
                    f"not the table of {release.names[slot]}", where=f"{file.path}: slot {slot}"
                )


def read_table(file: TensorFile, slot: int) -> bytes:
    """One slot's table out of a file of all."""
    span = file.spans[EVIDENCE_TABLE]
    table_bytes = span.num_bytes // span.shape[0]
    return bytes(file.read_range(EVIDENCE_TABLE, slot * table_bytes, table_bytes))


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

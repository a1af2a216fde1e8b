"""The parts of a release, taken from an anchor's folder, from bundles, or from another release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from moiety.bundle import VerifiedBundle, anchors, papers
from moiety.errors import IntegrityError
from moiety.family import EVIDENCE
from moiety.files import FileState, digest_bytes, read_limited
from moiety.merge import layout
from moiety.merge.assemble import Ground, Member, Standing, zero_table
from moiety.merge.lowrank import Source, converted, read_all, rounded
from moiety.merge.release import Release, read_table
from moiety.merge.roster import Slot
from moiety.merge.stock import read_config
from moiety.merge.streaming import Piece, Written, copied
from moiety.tensors import TensorFile, open_tensors


class OpenFiles(ExitStack):
    """Tensor files kept open while a release is made: what was checked is what is read."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, TensorFile] = {}

    def open(self, path: Path, settled: FileState | None = None) -> TensorFile:
        """The file at ``path``, opened once; ``settled`` is its state from when it was verified."""
        if path not in self._files:
            file = self.enter_context(open_tensors(path))
            file.settled = settled
            self._files[path] = file
        return self._files[path]

    def source(self, anchor: anchors.Anchor, name: str) -> Source:
        """A tensor of an anchor that was verified."""
        path, facts = anchor.tensor_file(name), anchor.paper.tensors[name]
        file = self.open(path, anchor.settled.get(path))
        span = file.spans.get(name)
        if span is None or (span.dtype, span.shape) != (facts.dtype, facts.shape):
            raise IntegrityError("not the tensor that was verified", where=f"{path}: {name}")
        return Source(file, name, facts.sha256)


def ground_from_anchor(anchor: anchors.Anchor, files: OpenFiles) -> Ground:
    """Everything but the members, from an anchor's folder."""
    paper = anchor.paper

    shared = [
        files.source(anchor, name) for name in layout.shared_names(paper.tensors, paper.num_layers)
    ]
    matrices = [
        files.source(anchor, dense) for dense, _, _ in layout.matrix_names(paper.num_layers, 0)
    ]
    taken = {name: anchor.folder / name for name in paper.files if name in layout.TOKENIZER_FILES}
    sources = (anchor.folder / "anchor.json", anchor.probe)
    return Ground(
        paper=paper,
        digest=anchor.digest,
        config=read_config(anchor.folder / "config.json"),
        files=taken | dict(zip(layout.ANCHOR_FILES, sources, strict=True)),
        shared=[copied(part.file, part.name, part.name, part.digest) for part in shared],
        matrices=matrices,
        anchor=_anchor_member(paper, matrices),
    )


def ground_from_release(release: Release, files: OpenFiles) -> Ground:
    """Everything but the members, from a release that stands already."""
    paper, roster, folder = release.anchor.paper, release.roster, release.folder
    first = roster.experts[0]
    matrices = [
        Source(files.open(folder / first.shard), mixed, first.tensors[mixed])
        for _, _, mixed in layout.matrix_names(paper.num_layers, 0)
    ]
    names = [*layout.ANCHOR_FILES, *sorted(set(roster.files) & layout.TOKENIZER_FILES)]
    shared = layout.shared_names(paper.tensors, paper.num_layers)
    digests = {name: paper.tensors[name].sha256 for name in shared}
    return Ground(
        paper=paper,
        digest=release.anchor.digest,
        config=read_config(folder / layout.CONFIG),
        files={name: folder / name for name in names},
        shared=[],
        matrices=matrices,
        anchor=_anchor_member(paper, matrices, _standing(release, first.shard, 0, first.tensors)),
        standing=_standing(release, layout.SHARED, 0, digests),
    )


def _anchor_member(
    paper: papers.AnchorPaper, matrices: list[Source], standing: Standing | None = None
) -> Member:
    def pieces(slot: int) -> list[Piece]:
        names = layout.matrix_names(paper.num_layers, slot)
        return [
            copied(source.file, source.name, mixed, source.digest)
            for source, (_, _, mixed) in zip(matrices, names, strict=True)
        ]

    return Member(
        name="anchor",
        key=None,
        bundle=None,
        rank=None,
        dtype=paper.dtype,
        terms=None,
        papers=(),
        evidence=zero_table(paper),
        pieces=pieces,
        standing=standing,
    )


def member_from_bundle(bundle: VerifiedBundle, ground: Ground) -> Member:
    """An owner's expert, from a bundle that was verified against this anchor."""
    manifest, paper, file = bundle.manifest, ground.paper, bundle.open()

    def source(name: str) -> Source:
        return Source(file, name, manifest.tensors[name].sha256)

    dtype = paper.dtype
    if manifest.rank is not None:
        dtype = manifest.tensors[layout.factor_names(paper.num_layers)[0][0]].dtype
    return Member(
        name=manifest.owner,
        key=bundle.key,
        bundle=bundle.digest,
        rank=manifest.rank,
        dtype=dtype,
        terms=manifest.terms,
        papers=(bundle.manifest_bytes, bundle.signature_bytes),
        evidence=rounded(read_all(source(EVIDENCE)), "F32", EVIDENCE),
        pieces=partial(_bundle_pieces, paper, source, manifest.rank),
    )


def _bundle_pieces(
    paper: papers.AnchorPaper, source: Callable[[str], Source], rank: int | None, slot: int
) -> list[Piece]:
    if rank is not None:
        parts = [source(name) for pair in layout.factor_names(paper.num_layers) for name in pair]
        return [copied(part.file, part.name, part.name, part.digest) for part in parts]
    names = layout.matrix_names(paper.num_layers, slot)
    return [_whole(source(full), mixed, paper.dtype) for _, full, mixed in names]


def _whole(source: Source, name: str, dtype: str) -> Piece:
    if source.dtype == dtype:
        return copied(source.file, source.name, name, source.digest)
    return converted(source, name, dtype)


def member_from_release(release: Release, slot: Slot, files: OpenFiles) -> Member:
    """An owner's expert, as it stands in a release."""
    folder, roster = release.folder, release.roster
    # The owner's own, also where the release is run with a tuned one.
    tables = files.open(folder / roster.own_evidence_file)
    names = list(roster.shapes(slot))

    def pieces(new_slot: int) -> list[Piece]:
        # Names in both slots come in the same order; factors are named alike in every slot.
        new_names = list(roster.shapes(slot.model_copy(update={"slot": new_slot})))
        file = files.open(folder / slot.shard)
        return [
            copied(file, old, new, slot.tensors[old])
            for old, new in zip(names, new_names, strict=True)
        ]

    return Member(
        name=slot.name,
        key=slot.key,
        bundle=slot.bundle,
        rank=slot.rank,
        dtype=slot.dtype,
        terms=slot.terms,
        papers=tuple(read_limited(folder / name) for name in layout.bundle_files(slot.name)),
        evidence=_table(tables, slot.slot, slot.evidence),
        pieces=pieces,
        standing=_standing(release, slot.shard, slot.slot, slot.tensors),
    )


def _table(file: TensorFile, slot: int, expected: str) -> bytes:
    data = read_table(file, slot)
    if digest_bytes(data) != expected:
        raise IntegrityError("not the table in the roster", where=f"{file.path}: slot {slot}")
    return data


def _standing(release: Release, shard: str, slot: int, tensors: Mapping[str, str]) -> Standing:
    facts = release.roster.shards[shard]
    return Standing(
        release.folder / shard, slot, Written(facts.bytes, facts.header_sha256, tensors)
    )

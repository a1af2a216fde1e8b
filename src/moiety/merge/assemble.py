"""A release from parts: an anchor and members, each from a folder, a bundle or another release.

``merge``, ``withdraw`` and ``admit`` differ only in where the parts come from, so all three make
the same bytes for the same set of owners. What stands in another release already, under the same
names, is linked instead of written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moiety.bundle import papers
from moiety.family import EVIDENCE_TABLE, OLMO2
from moiety.files import canonical_json, digest_bytes, digest_file, link_or_copy
from moiety.merge import layout
from moiety.merge.card import release_card
from moiety.merge.lowrank import Source
from moiety.merge.roster import Roster, Rows, Slot, Tuning, effective_top_k
from moiety.merge.stock import mixture_config, weight_index
from moiety.merge.streaming import Piece, Progress, Written, write_shards
from moiety.tensors import ITEM_BYTES, TensorPlan, write_tensors


@dataclass(frozen=True)
class Standing:
    """A shard that is written already: where, in which slot, and what is in it."""

    path: Path
    slot: int
    written: Written


@dataclass(frozen=True)
class Member:
    """An expert that will get a slot: its facts, its table and rows as bytes, and its tensors.

    ``evidence`` is F32; ``token`` rows are in the anchor's dtype, one a layer.
    ``pieces(slot)`` names the tensors for a slot. ``papers`` are manifest and signature.
    """

    name: str
    key: str | None
    bundle: str | None
    rank: int | None
    dtype: papers.Dtype
    terms: papers.Terms | None
    delta: Mapping[str, str] | None
    papers: tuple[bytes, ...]
    evidence: bytes
    token: tuple[bytes, ...]
    pieces: Callable[[int], list[Piece]]
    standing: Standing | None = None


@dataclass(frozen=True)
class Ground:
    """What every release of an anchor shares; ``files`` are taken over as they are.

    ``matrices`` are the anchor's feed-forward blocks, in the order of ``layout.matrix_names``.
    """

    paper: papers.AnchorPaper
    digest: str
    config: Mapping[str, Any]
    files: Mapping[str, Path]
    shared: list[Piece]
    matrices: Sequence[Source]
    anchor: Member
    standing: Standing | None = None


@dataclass(frozen=True)
class TunedRows:
    """Tables and rows to run a release with instead of the owners' own, and what its roster says.

    ``evidence`` holds the bytes of each slot's table, ``token`` of its row in each layer.
    """

    tuning: Tuning
    evidence: Sequence[bytes]
    token: Sequence[Sequence[bytes]]


def zero_rows(paper: papers.AnchorPaper) -> tuple[bytes, tuple[bytes, ...]]:
    """The anchor's table and rows: zero, so that every other one is a log-ratio against it."""
    row = bytes(paper.width * ITEM_BYTES[paper.dtype])
    return bytes(paper.vocab * ITEM_BYTES["F32"]), (row,) * paper.num_layers


def assemble(
    folder: Path,
    ground: Ground,
    members: Sequence[Member],
    *,
    top_k: int | None,
    native: bool,
    tuned: TunedRows | None = None,
    progress: Progress | None = None,
) -> Roster:
    """Fills an empty ``folder`` with the release of ``members``, sorted by name.

    With ``tuned`` tables and rows it is run with those, and the members' own lie beside them.

    Raises:
        TrustError: bytes on the way are not those that were verified.
    """
    placed = [ground.anchor, *sorted(members, key=lambda member: member.name)]
    written = _place_shards(folder, ground, placed, native, progress)
    own_rows = [member.evidence for member in placed], [member.token for member in placed]
    if tuned is None:
        _write_rows(folder, ground.paper, *own_rows)
    else:
        _write_rows(folder, ground.paper, tuned.evidence, tuned.token)
        _write_rows(folder / layout.UNTUNED, ground.paper, *own_rows)
    for name, source in ground.files.items():
        link_or_copy(source, folder / name)
    for member in placed[1:]:
        for name, data in zip(layout.bundle_files(member.name), member.papers, strict=True):
            _write(folder / name, data)
    slots = [
        _slot(member, number, written[layout.shard_name(member.name)])
        for number, member in enumerate(placed)
    ]
    tuning = None if tuned is None else tuned.tuning
    return _write_papers(folder, ground, slots, written, tuning, top_k=top_k, native=native)


def _place_shards(
    folder: Path,
    ground: Ground,
    placed: Sequence[Member],
    native: bool,
    progress: Progress | None,
) -> dict[str, Written]:
    written: dict[str, Written] = {}
    new: dict[str, list[Piece]] = {}

    def place(name: str, standing: Standing | None, pieces: Callable[[], list[Piece]]) -> None:
        if standing is None:
            new[name] = pieces()
        else:
            link_or_copy(standing.path, folder / name)
            written[name] = standing.written

    place(layout.SHARED, ground.standing, lambda: ground.shared)
    for slot, member in enumerate(placed):
        standing = member.standing
        unnamed = native and member.rank is not None
        if standing is not None and standing.slot != slot and not unnamed:
            standing = None
        place(layout.shard_name(member.name), standing, partial(member.pieces, slot))
    return written | write_shards(folder, new, progress)


def _write_rows(
    folder: Path,
    paper: papers.AnchorPaper,
    evidence: Sequence[bytes],
    token: Sequence[Sequence[bytes]],
) -> None:
    """Stacks tables, and rows (each a sequence over layers), in the order of the slots."""
    evidence_shape, token_shape = layout.row_shapes(len(evidence), paper.width, paper.vocab)
    tables = [TensorPlan(EVIDENCE_TABLE, "F32", evidence_shape, list(evidence))]
    rows = [
        TensorPlan(OLMO2.gate(n), paper.dtype, token_shape, [row[n] for row in token])
        for n in range(paper.num_layers)
    ]
    folder.mkdir(exist_ok=True)
    write_tensors(folder / layout.EVIDENCE, tables)
    write_tensors(folder / layout.ROUTER, rows)


def row_digests(evidence: bytes, token: Sequence[bytes]) -> Rows:
    """One slot's table, and its row in every layer, as a roster tells them."""
    return Rows(evidence=digest_bytes(evidence), token=tuple(map(digest_bytes, token)))


def _slot(member: Member, number: int, written: Written) -> Slot:
    return Slot(
        slot=number,
        name=member.name,
        owner=None if number == 0 else member.name,
        bundle=member.bundle,
        key=member.key,
        rank=member.rank,
        dtype=member.dtype,
        terms=member.terms,
        tensors=dict(written.tensors),
        rows=row_digests(member.evidence, member.token),
        delta=None if member.delta is None else dict(member.delta),
    )


def _write_papers(
    folder: Path,
    ground: Ground,
    slots: list[Slot],
    written: Mapping[str, Written],
    tuning: Tuning | None,
    *,
    top_k: int | None,
    native: bool,
) -> Roster:
    paper = ground.paper
    draft = Roster.model_construct(
        family=paper.family,
        num_layers=paper.num_layers,
        vocab=paper.vocab,
        width=paper.width,
        hidden=paper.hidden,
        anchor=ground.digest,
        dtype=paper.dtype,
        top_k=top_k,
        effective_top_k=effective_top_k(top_k, len(slots)),
        native=native,
        strict=tuning is None,
        tuning=tuning,
        experts=tuple(slots),
        files={},
        shards={
            name: papers.ShardFacts(bytes=facts.num_bytes, header_sha256=facts.header)
            for name, facts in sorted(written.items())
        },
    )
    made = {layout.CONFIG: canonical_json(config_for(draft, ground.config))}
    made[layout.CARD] = release_card(draft)
    if not native:
        made[layout.INDEX] = canonical_json(index_for(draft, paper))
    for name, data in made.items():
        _write(folder / name, data)
    names = {*layout.own_files(draft.names, native, tuned=tuning is not None), *ground.files}
    files = {name: _file_facts(folder / name) for name in sorted(names)}
    # model_validate, not model_copy: what we write must be what we would accept.
    roster = Roster.model_validate(draft.model_copy(update={"files": files}).model_dump())
    _write(folder / layout.ROSTER, papers.paper_bytes(roster))
    return roster


def config_for(roster: Roster, source: Mapping[str, Any]) -> dict[str, Any]:
    """The release's ``config.json``; ``source`` is the anchor's or that of another release."""
    return mixture_config(
        source,
        dtype=roster.dtype,
        num_experts=len(roster.experts),
        top_k=roster.effective_top_k,
        native=roster.native,
    )


def index_for(roster: Roster, paper: papers.AnchorPaper) -> dict[str, Any]:
    """The release's weight index: which shard holds which tensor."""
    shared = layout.shared_names(paper.tensors, paper.num_layers)
    _, gate_shape = layout.row_shapes(len(roster.experts), roster.width, roster.vocab)
    shards: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
        layout.SHARED: {
            name: (paper.tensors[name].shape, paper.tensors[name].dtype) for name in shared
        },
        layout.ROUTER: {
            OLMO2.gate(layer): (gate_shape, roster.dtype) for layer in range(roster.num_layers)
        },
    }
    for expert in roster.experts:
        shapes = roster.shapes(expert)
        shards[expert.shard] = {name: (shape, expert.dtype) for name, shape in shapes.items()}
    return weight_index(shards)


def _file_facts(path: Path) -> papers.FileFacts:
    return papers.FileFacts(bytes=path.stat().st_size, sha256=digest_file(path))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

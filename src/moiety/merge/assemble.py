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
from moiety.family import EVIDENCE_TABLE
from moiety.files import canonical_json, digest_bytes, digest_file, link_or_copy
from moiety.merge import layout
from moiety.merge.card import release_card
from moiety.merge.lowrank import Source
from moiety.merge.roster import Roster, Slot, Tuning, effective_top_k
from moiety.merge.stock import release_config
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
    """An expert that will get a slot: its facts, its table as F32 bytes, and its tensors.

    ``pieces(slot)`` names the tensors for a slot. ``papers`` are manifest and signature.
    """

    name: str
    key: str | None
    bundle: str | None
    rank: int | None
    dtype: papers.Dtype
    terms: papers.Terms | None
    papers: tuple[bytes, ...]
    evidence: bytes
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
class TunedTables:
    """Tables to run a release with instead of the owners' own, and what its roster says of them.

    ``evidence`` holds the bytes of each slot's table.
    """

    tuning: Tuning
    evidence: Sequence[bytes]


def zero_table(paper: papers.AnchorPaper) -> bytes:
    """The anchor's table: zero, so that every other one is a log-ratio against it."""
    return bytes(paper.vocab * ITEM_BYTES["F32"])


def assemble(
    folder: Path,
    ground: Ground,
    members: Sequence[Member],
    *,
    top_k: int | None,
    tuned: TunedTables | None = None,
    progress: Progress | None = None,
) -> Roster:
    """Fills an empty ``folder`` with the release of ``members``, sorted by name.

    With ``tuned`` tables it is run with those, and the members' own lie beside them.

    Raises:
        TrustError: bytes on the way are not those that were verified.
    """
    placed = [ground.anchor, *sorted(members, key=lambda member: member.name)]
    written = _place_shards(folder, ground, placed, progress)
    own = [member.evidence for member in placed]
    if tuned is None:
        _write_tables(folder, ground.paper, own)
    else:
        _write_tables(folder, ground.paper, tuned.evidence)
        _write_tables(folder / layout.UNTUNED, ground.paper, own)
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
    return _write_papers(folder, ground, slots, written, tuning, top_k=top_k)


def _place_shards(
    folder: Path,
    ground: Ground,
    placed: Sequence[Member],
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
        # Nothing in a file of factors depends on its slot.
        if standing is not None and standing.slot != slot and member.rank is None:
            standing = None
        place(layout.shard_name(member.name), standing, partial(member.pieces, slot))
    return written | write_shards(folder, new, progress)


def _write_tables(folder: Path, paper: papers.AnchorPaper, evidence: Sequence[bytes]) -> None:
    """Stacks tables in the order of the slots."""
    folder.mkdir(exist_ok=True)
    shape = (len(evidence), paper.vocab)
    plan = TensorPlan(EVIDENCE_TABLE, "F32", shape, list(evidence))
    write_tensors(folder / layout.EVIDENCE, [plan])


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
        evidence=digest_bytes(member.evidence),
    )


def _write_papers(
    folder: Path,
    ground: Ground,
    slots: list[Slot],
    written: Mapping[str, Written],
    tuning: Tuning | None,
    *,
    top_k: int | None,
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
    for name, data in made.items():
        _write(folder / name, data)
    names = {*layout.own_files(draft.names, tuned=tuning is not None), *ground.files}
    files = {name: _file_facts(folder / name) for name in sorted(names)}
    # model_validate, not model_copy: what we write must be what we would accept.
    roster = Roster.model_validate(draft.model_copy(update={"files": files}).model_dump())
    _write(folder / layout.ROSTER, papers.paper_bytes(roster))
    return roster


def config_for(roster: Roster, source: Mapping[str, Any]) -> dict[str, Any]:
    """The release's ``config.json``; ``source`` is the anchor's or that of another release."""
    return release_config(
        source,
        dtype=roster.dtype,
        num_experts=len(roster.experts),
        top_k=roster.effective_top_k,
    )


def _file_facts(path: Path) -> papers.FileFacts:
    return papers.FileFacts(bytes=path.stat().st_size, sha256=digest_file(path))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

"""A release for software that is not ours: a plain checkpoint, or one expert as a dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moiety.bundle import papers
from moiety.errors import FormatError
from moiety.family import EVIDENCE_TABLE, matrix_shape
from moiety.files import canonical_json, link_or_copy
from moiety.merge import layout
from moiety.merge.card import Separator, plain_card
from moiety.merge.leftovers import clean_folder
from moiety.merge.lowrank import Source, materialised
from moiety.merge.padded import Tables, scaled, widened
from moiety.merge.plain import (
    Frame,
    embedding,
    empty_expert,
    frame_of,
    gate,
    plain_config,
    reading_layer,
    shared_shapes,
)
from moiety.merge.release import Release, open_release
from moiety.merge.roster import Slot, TopK, effective_top_k
from moiety.merge.sources import OpenFiles
from moiety.merge.stock import dense_config, mixture_config, read_config, weight_index
from moiety.merge.streaming import Piece, Progress, copied, write_shards

if TYPE_CHECKING:
    from moiety.model import mixture

WEIGHTS = "model.safetensors"
PLAIN_SHARED = "model-shared.safetensors"
PLAIN_INDEX = "model.safetensors.index.json"
PAPER = "export.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: {licence}
---
# The expert `{name}` alone

The anchor `{anchor}`
with its feed-forward blocks replaced by those of `{name}`, without any router: it has no way to
decline text it does not know. Exported from the release `{release}`.
"""


class ExportedExpert(papers.Paper):
    """An expert in a plain checkpoint, and the bundle it came in; the anchor came in none."""

    name: str
    bundle: papers.Digest | None


class ExportPaper(papers.Paper):
    """``export.json``: which release a plain checkpoint was made of, and which of its experts."""

    format: Literal["moiety.export/1"] = "moiety.export/1"
    release: papers.Digest
    anchor: papers.Digest
    experts: tuple[ExportedExpert, ...]
    top_k: TopK
    strict: bool


@dataclass(frozen=True)
class Exported:
    """A plain checkpoint that was written. ``names`` are its experts in slot order."""

    out: Path
    names: list[str]
    num_bytes: int
    layers: int
    width: int
    separator: Separator


def export_dense(release: Path, name: str, out: Path, *, progress: Progress | None = None) -> Path:
    """Writes the expert called ``name`` (or ``anchor``) as a dense checkpoint.

    Raises:
        TrustError: the release does not hold, or has no such expert.
        StateError: ``out`` exists, or the disk is full.
    """
    standing = open_release(Path(release))
    expert = standing.expert(name)
    names = [dense for dense, _, _ in layout.matrix_names(standing.roster.num_layers, 0)]
    with OpenFiles() as files, clean_folder(out) as folder:
        shared = _shared_sources(standing, files).values()
        pieces = [copied(one.file, one.name, one.name, one.digest) for one in shared]
        pieces += _matrices(standing, expert, files, names)
        pieces.sort(key=lambda piece: piece.name)
        write_shards(folder, {WEIGHTS: pieces}, progress)
        config = dense_config(read_config(standing.folder / layout.CONFIG))
        card = _CARD.format(
            name=name,
            anchor=standing.roster.anchor,
            release=standing.digest,
            licence="the-anchors" if expert.terms is None else expert.terms.licence.lower(),
        )
        _write_beside(standing, folder, config, card)
    return Path(out)


def export_plain(
    release: Path,
    out: Path,
    *,
    experts: Sequence[str] | None = None,
    devices: int = 1,
    progress: Progress | None = None,
) -> Exported:
    """Writes a release, or the anchor and the ``experts`` named, as a plain checkpoint.

    Stock loaders of FlexOlmo load it, and route by evidence as our own mixture does. For tensor
    parallelism its heads are made a multiple of ``devices``, which costs width.

    Raises:
        TrustError: the release does not hold, or has no such expert.
        ConfigError: a kind of anchor that has no plain checkpoint.
        StateError: ``out`` exists, or the disk is full.
    """
    standing = open_release(Path(release))
    roster = standing.roster
    chosen = _chosen(standing, experts)
    config = mixture_config(
        read_config(standing.folder / layout.CONFIG),
        dtype=roster.dtype,
        num_experts=len(chosen),
        top_k=effective_top_k(roster.top_k, len(chosen)),
    )
    frame = frame_of(config, len(chosen) - 1, roster.dtype, devices)
    separator = _separator(standing)
    with OpenFiles() as files, clean_folder(out) as folder:
        shards = _plain_shards(standing, chosen, config, frame, separator, files)
        written = write_shards(folder, shards, progress)
        index = weight_index(
            {
                shard: {piece.name: (piece.shape, piece.dtype) for piece in pieces}
                for shard, pieces in shards.items()
            }
        )
        (folder / PLAIN_INDEX).write_bytes(canonical_json(index))
        paper = _paper(standing, chosen)
        papers.write_paper(folder / PAPER, paper)
        card = plain_card(roster, chosen, standing.digest, paper.top_k, separator)
        _write_beside(standing, folder, plain_config(config, frame), card)
    return Exported(
        out=Path(out),
        names=[expert.name for expert in chosen],
        num_bytes=sum(facts.num_bytes for facts in written.values()),
        layers=roster.num_layers + 1,
        width=frame.wide,
        separator=separator,
    )


def load_routing(release: Path) -> mixture.Routing:
    """How a release routes, without its experts: for who tells shares beside an export.

    Raises:
        TrustError: the release does not hold.
    """
    from moiety.model import mixture

    standing = open_release(Path(release))
    return mixture.load_routing(standing.folder / layout.EVIDENCE, standing.roster.effective_top_k)


def _chosen(release: Release, names: Sequence[str] | None) -> list[Slot]:
    """The anchor and the experts named, in slot order."""
    if names is None:
        return list(release.roster.experts)
    wanted = {release.expert(name).name for name in names} | {"anchor"}
    return [expert for expert in release.roster.experts if expert.name in wanted]


def _separator(release: Release) -> Separator:
    """The token that begins every text, and whether the anchor's tokenizer sets it by itself."""
    from moiety.data import load_tokenizer

    tokenizer, number = load_tokenizer(release.folder)
    if not 0 <= number < release.roster.vocab:
        raise FormatError(f"the separator {number} is no token of the model", where=release.folder)
    begins = tokenizer.encode("a").ids[:1] == [number]
    return Separator(number, tokenizer.id_to_token(number) or "", begins)


def _plain_shards(
    release: Release,
    chosen: Sequence[Slot],
    config: dict[str, Any],
    frame: Frame,
    separator: Separator,
    files: OpenFiles,
) -> dict[str, list[Piece]]:
    """Every tensor of the plain checkpoint, by file; the experts' slots are counted anew."""
    roster = release.roster
    shards = {PLAIN_SHARED: reading_layer(frame)}
    shards[PLAIN_SHARED] += [gate(layer + 1, frame) for layer in range(roster.num_layers)]
    shards[PLAIN_SHARED] += _plain_shared(release, chosen, config, frame, separator, files)
    for slot, expert in enumerate(chosen):
        names = layout.matrix_names(roster.num_layers, slot)
        pieces = _matrices(release, expert, files, [_later(mixed) for _, _, mixed in names])
        shards[expert.shard] = empty_expert(slot, frame, roster.hidden) + [
            widened(piece, matrix_shape(piece.name.split(".")[-2], frame.wide, roster.hidden))
            for piece in pieces
        ]
    return {shard: sorted(pieces, key=lambda piece: piece.name) for shard, pieces in shards.items()}


def _plain_shared(
    release: Release,
    chosen: Sequence[Slot],
    config: dict[str, Any],
    frame: Frame,
    separator: Separator,
    files: OpenFiles,
) -> list[Piece]:
    """The anchor's tensors outside its feed-forward blocks, each in its larger frame."""
    roster = release.roster
    sources = _shared_sources(release, files)
    if config["tie_word_embeddings"]:
        # Loaders take the embedding for both; one more that says the same would be untied from it.
        head = sources.pop(HEAD, None)
        if head is not None and head.digest != sources[EMBEDDING].digest:
            raise FormatError("a tied head that is not the embedding", where=head.file.path)
    old = shared_shapes(roster.num_layers, roster.vocab, frame.width, frame.keys)
    new = shared_shapes(roster.num_layers, roster.vocab, frame.wide, frame.wide_keys)
    found = {name: source.shape for name, source in sources.items()}
    expected = {n: s for n, s in old.items() if n != HEAD or not config["tie_word_embeddings"]}
    if found != expected:
        odd = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))[0]
        raise FormatError(f"not a tensor of a plain OLMo 2: {odd!a}", where=release.folder)
    tables = _tables(release, chosen, files)
    pieces = []
    for name, source in sources.items():
        later, shape = _later(name), new[name]
        if len(shape) == 1:
            pieces.append(scaled(source, later, shape[0], frame.shrink))
            continue
        piece = copied(source.file, name, later, source.digest)
        if name == EMBEDDING:
            pieces.append(embedding(piece, frame, tables, separator.number))
        else:
            pieces.append(widened(piece, (shape[0], shape[1])))
    return pieces


def _tables(release: Release, chosen: Sequence[Slot], files: OpenFiles) -> Tables:
    """The tables that the release is run with: the owners' own, or the tuned ones."""
    tuning = release.roster.tuning
    owners = [expert.slot for expert in chosen[1:]]
    run_with = [one.evidence for one in release.roster.experts]
    if tuning is not None:
        run_with = list(tuning.evidence)
    file = files.open(release.folder / layout.EVIDENCE)
    return Tables(file, EVIDENCE_TABLE, owners, [run_with[slot] for slot in owners])


def _later(name: str) -> str:
    """The name of a layer's tensor when one more layer stands before it; others keep theirs."""
    words = name.split(".")
    if words[1] == "layers":
        words[2] = str(int(words[2]) + 1)
    return ".".join(words)


def _paper(release: Release, chosen: Sequence[Slot]) -> ExportPaper:
    roster = release.roster
    return ExportPaper(
        release=release.digest,
        anchor=roster.anchor,
        experts=tuple(ExportedExpert(name=one.name, bundle=one.bundle) for one in chosen),
        top_k=effective_top_k(roster.top_k, len(chosen)),
        strict=roster.strict,
    )


def _write_beside(release: Release, folder: Path, config: dict[str, Any], card: str) -> None:
    """What goes with every export: tokenizer files, configuration and card."""
    for taken in sorted(set(release.roster.files) & layout.TOKENIZER_FILES):
        link_or_copy(release.folder / taken, folder / taken)
    (folder / layout.CONFIG).write_bytes(canonical_json(config))
    (folder / layout.CARD).write_text(card, encoding="utf-8")


def _shared_sources(release: Release, files: OpenFiles) -> dict[str, Source]:
    """The anchor's tensors outside its feed-forward blocks, by name."""
    paper = release.anchor.paper
    file = files.open(release.folder / layout.SHARED)
    return {
        name: Source(file, name, paper.tensors[name].sha256)
        for name in layout.shared_names(paper.tensors, paper.num_layers)
    }


def _matrices(
    release: Release, expert: Slot, files: OpenFiles, new_names: Sequence[str]
) -> list[Piece]:
    """An expert's matrices, whole, under ``new_names`` in the order of ``layout.matrix_names``."""
    roster = release.roster
    file = files.open(release.folder / expert.shard)
    names = [mixed for _, _, mixed in layout.matrix_names(roster.num_layers, expert.slot)]
    if expert.rank is None:
        return [
            copied(file, mixed, new, expert.tensors[mixed])
            for mixed, new in zip(names, new_names, strict=True)
        ]
    first = roster.experts[0]
    ground = files.open(release.folder / first.shard)
    public = [mixed for _, _, mixed in layout.matrix_names(roster.num_layers, 0)]

    def factor(name: str) -> Source:
        return Source(file, name, expert.tensors[name])

    return [
        materialised(Source(ground, mixed, first.tensors[mixed]), factor(inner), factor(outer), new)
        for new, mixed, (inner, outer) in zip(
            new_names, public, layout.factor_names(roster.num_layers), strict=True
        )
    ]

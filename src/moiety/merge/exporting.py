"""One expert of a release as an ordinary dense model: fewer files, any loader."""

from __future__ import annotations

from pathlib import Path

from moiety.files import canonical_json, link_or_copy
from moiety.merge import layout
from moiety.merge.leftovers import clean_folder
from moiety.merge.lowrank import Source, materialised
from moiety.merge.release import Release, open_release
from moiety.merge.roster import Slot
from moiety.merge.sources import OpenFiles
from moiety.merge.stock import dense_config, read_config
from moiety.merge.streaming import Piece, Progress, copied, write_shards

WEIGHTS = "model.safetensors"

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


def export(release: Path, name: str, out: Path, *, progress: Progress | None = None) -> Path:
    """Writes the expert called ``name`` (or ``anchor``) as a dense checkpoint.

    Raises:
        TrustError: the release does not hold, or has no such expert.
        StateError: ``out`` exists, or the disk is full.
    """
    standing = open_release(Path(release))
    expert = standing.expert(name)
    with OpenFiles() as files, clean_folder(out) as folder:
        pieces = _shared(standing, files) + _matrices(standing, expert, files)
        pieces.sort(key=lambda piece: piece.name)
        write_shards(folder, {WEIGHTS: pieces}, progress)
        for taken in sorted(set(standing.roster.files) & layout.TOKENIZER_FILES):
            link_or_copy(standing.folder / taken, folder / taken)
        config = dense_config(read_config(standing.folder / layout.CONFIG))
        (folder / layout.CONFIG).write_bytes(canonical_json(config))
        card = _CARD.format(
            name=name,
            anchor=standing.roster.anchor,
            release=standing.digest,
            licence="the-anchors" if expert.terms is None else expert.terms.licence.lower(),
        )
        (folder / layout.CARD).write_text(card, encoding="utf-8")
    return Path(out)


def _shared(release: Release, files: OpenFiles) -> list[Piece]:
    paper = release.anchor.paper
    file = files.open(release.folder / layout.SHARED)
    return [
        copied(file, name, name, paper.tensors[name].sha256)
        for name in layout.shared_names(paper.tensors, paper.num_layers)
    ]


def _matrices(release: Release, expert: Slot, files: OpenFiles) -> list[Piece]:
    roster = release.roster
    file = files.open(release.folder / expert.shard)
    names = layout.matrix_names(roster.num_layers, expert.slot)
    if expert.rank is None:
        return [copied(file, mixed, dense, expert.tensors[mixed]) for dense, _, mixed in names]
    first = roster.experts[0]
    ground = files.open(release.folder / first.shard)
    public = [mixed for _, _, mixed in layout.matrix_names(roster.num_layers, 0)]

    def factor(name: str) -> Source:
        return Source(file, name, expert.tensors[name])

    return [
        materialised(
            Source(ground, mixed, first.tensors[mixed]), factor(inner), factor(outer), dense
        )
        for (dense, _, _), mixed, (inner, outer) in zip(
            names, public, layout.factor_names(roster.num_layers), strict=True
        )
    ]

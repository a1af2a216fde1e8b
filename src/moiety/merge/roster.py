"""``roster.json``: which expert sits in which slot, and the digest of everything in a release.

The roster's digest, SHA-256 of its bytes, names the release. It holds no time, path or host, so
the same anchor and bundles give the same roster in whatever order they were named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from moiety.bundle import papers
from moiety.errors import FormatError
from moiety.files import digest_bytes, read_limited
from moiety.merge import layout

DEFAULT_TOP_K = 5
MAX_EXPERTS = 4096

Digests = Annotated[dict[papers.TensorName, papers.Digest], Field(max_length=16_384)]
TopK = Annotated[int, Field(ge=1, le=MAX_EXPERTS + 1)]

_OTHER_FOLDERS = {
    "manifest.json": "an owner's bundle",
    "anchor.json": "an anchor",
    "run.json": "an owner's run",
    "export.json": "a plain checkpoint",
}
_REMEDY = "name the folder of a release, which 'moiety merge' makes of an anchor and bundles"

WhyNotStrict = Literal["Its tables were tuned together, on public text that its owners chose."]
WHY_NOT_STRICT: WhyNotStrict = get_args(WhyNotStrict)[0]


class Slot(papers.Paper):
    """One expert of a release. Slot 0 is the anchor's, which has no owner.

    ``dtype`` is that of the tensors in the expert's file, which are whole matrices, or factors when
    there is a ``rank``; ``evidence`` is the digest of its table.
    """

    slot: Annotated[int, Field(ge=0, le=MAX_EXPERTS)]
    name: str
    owner: papers.Owner | None
    bundle: papers.Digest | None
    key: papers.KeyId | None
    rank: Annotated[int, Field(ge=1, le=65_536)] | None
    dtype: papers.Dtype
    terms: papers.Terms | None
    tensors: Digests
    evidence: papers.Digest

    @property
    def shard(self) -> str:
        """The file that holds this expert."""
        return layout.shard_name(self.name)

    @model_validator(mode="after")
    def _anchor_or_owner(self) -> Slot:
        owned = (self.owner, self.bundle, self.key, self.terms)
        if self.slot == 0:
            if self.name != "anchor" or any(fact is not None for fact in (*owned, self.rank)):
                raise ValueError("slot 0 is the anchor's and nobody owns it")
        elif self.name != self.owner or any(fact is None for fact in owned):
            raise ValueError("an expert needs owner, bundle, key and terms")
        return self


class ProxiesFacts(papers.Paper):
    """Which paper an owner's proxies came in, and the key that signed it, if one did."""

    paper: papers.Digest
    key: papers.KeyId | None


class Tuning(papers.Paper):
    """What was done to the tables of a release that is not strict.

    ``evidence`` has the digests of the tuned ones, by slot; the owners' own stand under
    ``experts``.
    """

    reason: WhyNotStrict
    steps: papers.Count
    proxies: Annotated[
        dict[papers.Owner, ProxiesFacts], Field(min_length=1, max_length=MAX_EXPERTS)
    ]
    evidence: Annotated[tuple[papers.Digest, ...], Field(min_length=1, max_length=MAX_EXPERTS + 1)]


class Roster(papers.ModelFacts):
    """``roster.json``.

    ``top_k`` is what was asked for (None: up to 5), ``effective_top_k`` what that gives. ``files``
    covers every file but the roster and the shards, ``shards`` those. Digests of the tensors in
    ``shared.safetensors`` stand in ``anchor/anchor.json``. ``tuning`` is in the roster of a release
    that is not strict, and in no other.
    """

    format: Literal["moiety.roster/1"] = "moiety.roster/1"
    anchor: papers.Digest
    dtype: papers.Dtype
    top_k: TopK | None
    effective_top_k: TopK
    strict: bool
    tuning: Tuning | None = None
    experts: Annotated[tuple[Slot, ...], Field(min_length=1, max_length=MAX_EXPERTS + 1)]
    files: Annotated[dict[papers.RelativePath, papers.FileFacts], Field(max_length=20_000)]
    shards: Annotated[
        dict[papers.RelativePath, papers.ShardFacts], Field(max_length=MAX_EXPERTS + 2)
    ]

    @property
    def names(self) -> list[str]:
        """The experts in slot order, ``anchor`` first."""
        return [expert.name for expert in self.experts]

    @property
    def own_evidence_file(self) -> str:
        """The file of the tables as the owners' bundles hold them."""
        return layout.evidence_file(untuned=self.tuning is not None)

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file but the roster's own."""
        files = {name: facts.bytes for name, facts in self.files.items()}
        return files | {name: facts.bytes for name, facts in self.shards.items()}

    def shapes(self, expert: Slot) -> layout.Shapes:
        """Every tensor in the expert's file, in order, with its shape."""
        sizes = (self.num_layers, self.width, self.hidden)
        if expert.rank is not None:
            return layout.factor_shapes(*sizes, expert.rank)
        return layout.matrix_shapes(*sizes, expert.slot)

    @model_validator(mode="after")
    def _holds_together(self) -> Roster:
        if [expert.slot for expert in self.experts] != list(range(len(self.experts))):
            raise ValueError("slots are not 0, 1, 2 and so on")
        if self.names[1:] != sorted(set(self.names[1:])):
            raise ValueError("owners are not sorted, or one occurs twice")
        if self.effective_top_k != effective_top_k(self.top_k, len(self.experts)):
            raise ValueError("effective_top_k does not follow from top_k")
        self._check_tuning()
        for expert in self.experts:
            self._check_expert(expert)
        if set(self.shards) != {layout.SHARED, *(expert.shard for expert in self.experts)}:
            raise ValueError("shards are not those of the experts")
        own = set(layout.own_files(self.names, tuned=self.tuning is not None))
        if not own <= set(self.files) <= own | layout.TOKENIZER_FILES:
            raise ValueError("files are not those of a release")
        return self

    def _check_tuning(self) -> None:
        if self.strict != (self.tuning is None):
            raise ValueError("a release is strict, or its tables were tuned, and never both")
        if self.tuning is None:
            return
        if not set(self.tuning.proxies) <= set(self.names[1:]):
            raise ValueError("proxies of somebody who is not in the release")
        if len(self.tuning.evidence) != len(self.experts):
            raise ValueError("tuned tables are not one for each slot")

    @model_serializer(mode="wrap")
    def _tell(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A strict roster does not speak of tuning: its bytes are those from before there was any.
        told: dict[str, Any] = handler(self)
        if self.tuning is None:
            told.pop("tuning", None)
        return told

    def _check_expert(self, expert: Slot) -> None:
        where = f"slot {expert.slot}:"
        if set(expert.tensors) != set(self.shapes(expert)):
            raise ValueError(f"{where} tensors are not those of an expert")
        if expert.dtype != self.dtype and expert.rank is None:
            raise ValueError(f"{where} dtype is not the anchor's")


def effective_top_k(requested: int | None, num_experts: int) -> int:
    """How many experts run at most: what was asked for or 5, and never more than there are."""
    return min(requested or DEFAULT_TOP_K, num_experts)


def roster_digest(roster: Roster) -> str:
    """What names a release: SHA-256 of the bytes of ``roster.json``."""
    return digest_bytes(papers.paper_bytes(roster))


def read_roster(folder: Path) -> tuple[Roster, bytes]:
    """The roster of a release, with its bytes. Raises ``FormatError`` for anything else."""
    path = folder / layout.ROSTER
    with papers.reading(folder):
        if not (path.exists() or path.is_symlink()):
            raise FormatError(_what_else(folder), where=folder, remedy=_REMEDY)
    data = read_limited(path)
    return papers.parse_paper(Roster, data, path), data


def _what_else(folder: Path) -> str:
    """What a folder is that has no roster, for whoever took one thing for another."""
    for name, what in _OTHER_FOLDERS.items():
        if (folder / name).is_file():
            return f"this is {what}, not a release"
    return "not a release" if folder.is_dir() else "no such folder"

"""STUDY.toml: whose text, which anchor, how much training, which ways to merge, which seeds.

Paths are relative to the file's folder, or to what its ``data`` line names from there.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moiety.bundle import papers
from moiety.errors import ConfigError, DataError
from moiety.family import owner_problem
from moiety.files import canonical_json
from moiety.study.methods import METHODS
from moiety.train import TrainConfig

PUBLIC = "public"
"""The name of the public text beside the owners' in every table."""

MERGED_TOP_K = 5
"""Of pairs, removals, the plain checkpoint and the reference recipe."""

Overrides = dict[str, Any]
Files = str | tuple[str, ...]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnchorPlan(_Table):
    """The public model: made from a preset, or a folder that exists."""

    preset: Literal["tiny", "small", "base"] = "tiny"
    tokens: Count | None = None
    seed: Seed = 0
    folder: str | None = None
    train: Overrides = {}


class TextPlan(_Table):
    """Where a text lies, and which of its documents belong to it."""

    train: Files
    valid: Files
    test: Files
    sources: tuple[str, ...] = ()
    """Beginnings of document ids, up to a ``/`` or ``#``; none: every document."""


class StudyPlan(_Table):
    """STUDY.toml."""

    name: str = "study"
    data: str = "."
    text_field: str = "text"
    id_field: str = "id"
    anchor: AnchorPlan
    public: TextPlan
    owners: dict[str, TextPlan] = Field(min_length=1)
    owner_tokens: Count
    btx_tokens: Count | None = None
    """Public tokens the merged model is trained on in ``btx``; None: as many as one owner's."""
    eval_tokens: Count = 16_000
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    methods: tuple[str, ...] = Field(tuple(METHODS), min_length=1)
    top_k: tuple[Count, ...] = Field((1, 2, 5), min_length=1)
    trained_top_k: Count = 2
    """Experts that run in mixtures that are trained together: ``btx`` and the joint ones."""
    jobs: int = Field(0, ge=0)
    """Pieces of work side by side, one thread each; 0: one a core, and with a GPU two."""
    train: Overrides = {}

    @model_validator(mode="after")
    def _fits(self) -> StudyPlan:
        for name in self.owners:
            problem = owner_problem(name)
            if problem:
                raise ValueError(f"owners.{name}: {problem}")
        if self.public.sources:
            raise ValueError("public.sources: the public text is taken whole")
        for field in ("seeds", "methods", "top_k"):
            values = getattr(self, field)
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: something is named twice")
        return self


@dataclass(frozen=True)
class Plan:
    """A study's plan, and the folder that its paths are relative to."""

    paper: StudyPlan
    base: Path

    @property
    def owners(self) -> tuple[str, ...]:
        """Owners in the order of their names, as in a roster."""
        return tuple(sorted(self.paper.owners))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text: the public one, and each owner's."""
        return (PUBLIC, *self.owners)

    @property
    def config(self) -> TrainConfig:
        """Settings of an owner's training, seed 0."""
        tokens = f"budget.tokens={self.paper.owner_tokens}"
        return TrainConfig().resolve(None, [*self.train_assignments, tokens])

    @property
    def train_assignments(self) -> list[str]:
        """What owners' training, and whatever is trained beside it, is told."""
        return _assignments(self.paper.train)

    @property
    def anchor_assignments(self) -> list[str]:
        """What the anchor's training is told beyond its preset."""
        tokens = self.paper.anchor.tokens
        more = [] if tokens is None else [f"budget.tokens={tokens}"]
        return [*_assignments(self.paper.anchor.train), *more]

    def top_ks(self) -> tuple[int, ...]:
        """The numbers of experts that run, ascending, none above how many there are."""
        return tuple(sorted({min(k, len(self.owners) + 1) for k in self.paper.top_k}))

    @property
    def merged_top_k(self) -> int:
        """Experts that run at most where no number is told, as ``moiety merge`` decides it."""
        return min(MERGED_TOP_K, len(self.owners) + 1)

    @property
    def trained_top_k(self) -> int:
        """Experts that run in mixtures that are trained together."""
        return min(self.paper.trained_top_k, len(self.owners) + 1)

    def path(self, written: str) -> Path:
        """A path of the plan as one that can be opened from anywhere."""
        return self.base / written

    def sources(self, text: str, part: Literal["train", "valid", "test"]) -> list[str]:
        """Where a part of a text is read, before its documents are chosen."""
        plan = self.paper.public if text == PUBLIC else self.paper.owners[text]
        files: Files = getattr(plan, part)
        named = [files] if isinstance(files, str) else list(files)
        data = self.base / self.paper.data
        return [name if name.startswith("hf:") else str(data / name) for name in named]

    def choose(self, methods: tuple[str, ...] | None, seeds: tuple[int, ...] | None) -> Plan:
        """The same study with other methods or seeds.

        Raises:
            ConfigError: a method or a seed that cannot be one.
        """
        values = self.paper.model_dump()
        values |= {} if methods is None else {"methods": methods}
        values |= {} if seeds is None else {"seeds": seeds}
        return Plan(_parse(values, "--methods, --seed"), self.base)

    def to_json(self) -> bytes:
        """For another process of the same study."""
        base = str(self.base.resolve())
        return canonical_json({"base": base, "paper": self.paper.model_dump(mode="json")})

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """What ``to_json`` wrote."""
        value = json.loads(data)
        return cls(_parse(value["paper"], value["base"]), Path(value["base"]))

    def identity(self) -> bytes:
        """What may not change between two starts in one folder: all but methods, seeds, jobs, k."""
        open_ended = {"methods", "seeds", "jobs", "top_k"}
        return canonical_json(self.paper.model_dump(mode="json", exclude=open_ended))


def read_plan(path: Path) -> Plan:
    """Reads and checks STUDY.toml.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a bad value; with its place.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the study: {error}", where=path) from error
    plan = Plan(_parse(values, path), path.parent)
    _check_settings(plan, path)
    return plan


def _check_settings(plan: Plan, path: Path) -> None:
    """Said now, not after the anchor's training, and by the keys that the file has."""
    tables = {
        "train": _assignments(plan.paper.train),
        "anchor.train": plan.anchor_assignments,
    }
    for table, assignments in tables.items():
        try:
            TrainConfig().resolve(None, assignments)
        except ConfigError as error:
            message = f"{table}.{error.message}"
            raise ConfigError(message, where=path, remedy=error.remedy) from error


def check_texts(plan: Plan) -> None:
    """Raises ``DataError`` unless everything that the study reads is there."""
    parts: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
    named = [name for text in plan.texts for part in parts for name in plan.sources(text, part)]
    missing = [name for name in named if not name.startswith("hf:") and not Path(name).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(named)} texts of the study are not there",
            where=missing[0],
            remedy="put them there, or change the study's data line",
        )
    folder = plan.paper.anchor.folder
    if folder is not None and not plan.path(folder).is_dir():
        raise DataError("the study's anchor is not there", where=plan.path(folder))


def _parse(values: Mapping[str, Any], where: str | Path) -> StudyPlan:
    try:
        paper = StudyPlan.model_validate(values)
    except ValidationError as error:
        first = papers.first_fault(error)
        key = ".".join(map(str, _place(values, first["loc"])))
        fault = "no such key" if first["type"] == "extra_forbidden" else papers.words(first)
        raise ConfigError(
            f"{key}: {fault}" if key else fault, where=where, remedy=_keys_beside(first["loc"])
        ) from error
    unknown = [method for method in paper.methods if method not in METHODS]
    if unknown:
        raise ConfigError(
            f"no such method: {', '.join(unknown)}",
            where=where,
            remedy=f"there are: {', '.join(METHODS)}",
        )
    return paper


def _place(values: Any, loc: Sequence[int | str]) -> Iterator[int | str]:
    """The place in the file, without what pydantic adds where a value may be of several kinds."""
    for part in loc:
        if isinstance(values, Mapping):
            values = values.get(str(part))
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part]
        else:
            return
        yield part


def _keys_beside(loc: Sequence[int | str]) -> str:
    """Which keys there are in the table of a place."""
    name, table = "a study", StudyPlan.model_fields
    if len(loc) > 1 and loc[0] == "anchor":
        name, table = "an anchor", AnchorPlan.model_fields
    elif len(loc) > 1 and loc[0] in (PUBLIC, "owners"):
        name, table = "a text", TextPlan.model_fields
    return f"{name} has: {', '.join(sorted(table))}"


def _assignments(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``section.field=value`` of every leaf, as ``--set`` takes it."""
    found = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            found += _assignments(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={json.dumps(value)}")
    return found

"""Where everything of a study lies below its folder, and how its texts and settings are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moiety.data import Skipped, Sources
from moiety.errors import DataError
from moiety.files import new_folder
from moiety.study.plan import PUBLIC, Plan
from moiety.train import TrainConfig

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Study:
    """A plan and the folder it is carried out in."""

    plan: Plan
    out: Path

    @property
    def anchor(self) -> Path:
        """The public model: the plan's own, or made here."""
        folder = self.plan.paper.anchor.folder
        return self.out / "anchor" if folder is None else self.plan.path(folder)

    @property
    def report(self) -> Path:
        """The folder of what the study found."""
        return self.out / "report"

    def config(self, seed: int) -> TrainConfig:
        """Settings of one training under a seed."""
        return self.plan.config.model_copy(update={"seed": seed})

    def seed(self, seed: int) -> Path:
        """Everything made under one seed."""
        return self.out / f"seed-{seed}"

    def run(self, seed: int, owner: str) -> Path:
        """An owner's private run."""
        return self.seed(seed) / "runs" / owner

    def release(self, seed: int) -> Path:
        """The owners' experts merged."""
        return self.seed(seed) / "release"

    def plain(self, seed: int) -> Path:
        """The release as a plain checkpoint."""
        return self.seed(seed) / "plain"

    def tuned(self, seed: int) -> Path:
        """The release with its tables tuned."""
        return self.seed(seed) / "tuned"

    def trained(self, seed: int, name: str) -> Path:
        """Something that another way of training made."""
        return self.seed(seed) / "baselines" / name

    def sample(self, text: str) -> Path:
        """The windows that a text is scored on."""
        return self.out / "texts" / f"{text}.safetensors"

    def cell(self, seed: int, model: str, text: str) -> Path:
        """The nats of one model on one text; the anchor's are the same under every seed."""
        folder = self.out if model == "anchor" else self.seed(seed)
        return folder / "scores" / model / f"{text}.safetensors"

    def log(self, piece: str) -> Path:
        """What was said while a piece was done."""
        return self.out / "logs" / f"{piece.replace('/', '.')}.log"

    def chosen(self, owner: str) -> Path:
        """The documents of an owner who is told by the beginnings of their ids."""
        return self.out / "data" / owner

    @property
    def choosy(self) -> tuple[str, ...]:
        """Owners to whom only some documents of their files belong."""
        return tuple(name for name in self.plan.owners if self.plan.paper.owners[name].sources)

    def sources(self, text: str, part: Part) -> Sources:
        """A part of a text, as it is read."""
        if text != PUBLIC and text in self.choosy:
            return Sources([str(self.chosen(text) / f"{part}.jsonl")])
        return Sources(self.plan.sources(text, part), self.plan.paper.text_field)


def choose_documents(study: Study, owner: str) -> None:
    """Writes an owner's documents out of files that several owners share.

    Raises:
        DataError: no document of a part begins with any of the owner's sources.
    """
    paper = study.plan.paper
    wanted = paper.owners[owner].sources
    with new_folder(study.chosen(owner)) as folder:
        for part in PARTS:
            files = study.plan.sources(owner, part)
            shared = Sources(files, paper.text_field, record_key=paper.id_field)
            lines = [
                json.dumps({"id": document.record, "text": document.text}, ensure_ascii=False)
                for document in shared.documents(Skipped())
                if any(_belongs(document.record, source) for source in wanted)
            ]
            if not lines:
                raise DataError(
                    f"no document of {owner} begins with {', '.join(wanted)}",
                    where=files[0],
                    remedy=f"look at field {paper.id_field!r} of this file",
                )
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def _belongs(name: str, source: str) -> bool:
    """Whether a document's id begins with a source, up to a border within the id."""
    return name == source or name.startswith((f"{source}/", f"{source}#"))

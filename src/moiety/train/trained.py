"""Models that are made once: where unfinished work lies, and what a finished one says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, JsonValue
from transformers import Olmo2ForCausalLM

from moiety.bundle import anchors, papers
from moiety.data import Sources
from moiety.errors import ConfigError, StateError
from moiety.files import (
    canonical_json,
    digest_bytes,
    link_or_copy,
    new_folder,
    parse_json,
    read_limited,
    write_atomic,
)
from moiety.model import load_dense
from moiety.train.batches import whole_steps
from moiety.train.compute import Compute, resolve_compute
from moiety.train.config import TrainConfig
from moiety.train.loop import Outcome
from moiety.train.stopping import resumable

PAPER = "trained.json"
START = "start.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

Work = Callable[[Path], tuple[Outcome, Callable[[Path], None]]]
"""Trains in the folder it is given; returns how that went, and what writes the model elsewhere."""


class TrainedPaper(papers.Paper):
    """``trained.json``: what a model for comparison was made of. It stays at home."""

    format: Literal["moiety.trained/1"] = "moiety.trained/1"
    kind: str
    anchor: str
    """The anchor's digest."""
    question: str
    """Digest of everything that was asked for: one question has one answer."""
    config: dict[str, JsonValue]
    steps: int = Field(ge=0)
    tokens_seen: int = Field(ge=0)
    seconds: float = Field(ge=0)


@dataclass(frozen=True)
class Trained:
    """A finished model, and what it took."""

    folder: Path
    tokens_seen: int
    seconds: float


@dataclass(frozen=True)
class Question:
    """What is asked for. ``options`` are those of one ``kind`` of model."""

    kind: str
    anchor: Path
    config: TrainConfig
    texts: Mapping[str, Sources]
    options: Mapping[str, JsonValue]

    def digest(self) -> str:
        """One SHA-256 of all of it but how it is computed."""
        config = self.config.model_dump(
            mode="json", exclude={"compute": True, "budget": {"save_seconds"}}
        )
        texts = {
            name: [list(map(str, text.paths)), text.text_field, text.record_key]
            for name, text in self.texts.items()
        }
        anchor = anchors.open_facts(self.anchor).digest
        asked = [self.kind, anchor, config, texts, dict(self.options)]
        return digest_bytes(canonical_json(asked))


@dataclass(frozen=True)
class Start:
    """Where training begins: the anchor in float32 on its device, and how long it goes on."""

    backbone: Olmo2ForCausalLM
    compute: Compute
    steps: int


def make_once(question: Question, out: Path, work: Work, *, resume: bool) -> Trained:
    """Answers a question, unless ``out`` holds the answer. Unfinished work is in ``OUT.training``.

    Raises:
        ConfigError: no budget, or windows longer than the anchor's positions.
        StateError: ``out`` or the unfinished work answers another question, or ``resume`` was not
            asked for.
        KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; ``resume`` goes on.
    """
    asked = question.digest()
    if (out / PAPER).exists():
        return _finished(out, asked)
    scratch = _begin(out, asked, resume)
    with resumable():
        outcome, save = work(scratch)
        with new_folder(out) as folder:
            folder.chmod(0o700)  # weights that have seen private text
            save(folder)
            paper = TrainedPaper(
                kind=question.kind,
                anchor=anchors.open_facts(question.anchor).digest,
                question=asked,
                config=question.config.model_dump(mode="json"),
                steps=outcome.steps,
                tokens_seen=outcome.tokens_seen,
                seconds=round(outcome.seconds, 1),
            )
            papers.write_paper(folder / PAPER, paper)
    shutil.rmtree(scratch)
    return Trained(out, outcome.tokens_seen, paper.seconds)


def read_trained(folder: Path) -> TrainedPaper:
    """The paper of a finished model. Raises ``FormatError`` when there is none."""
    return papers.read_paper(TrainedPaper, folder / PAPER)


def load_start(anchor: Path, config: TrainConfig) -> Start:
    """The anchor, ready to be trained further.

    There is no default budget: models are compared at budgets that somebody chose.

    Raises:
        ConfigError: no budget, windows longer than the anchor's positions, no such device.
    """
    if config.budget.tokens is None:
        raise ConfigError("say how many tokens to train on", where="budget.tokens")
    steps = whole_steps(config.budget.tokens, config.batch.windows, config.data.window_tokens)
    compute = resolve_compute(config.compute, steps)
    backbone = load_dense(anchor, dtype=torch.float32, device=compute.device)
    if config.data.window_tokens > backbone.config.max_position_embeddings:
        raise ConfigError("longer than the anchor's positions", where="data.window_tokens")
    return Start(backbone, compute, steps)


def link_tokenizer(anchor: Path, folder: Path) -> None:
    """The anchor's tokenizer beside a model that was made from it."""
    for name in _TOKENIZER_FILES:
        if (anchor / name).exists():
            link_or_copy(anchor / name, folder / name)


def _finished(out: Path, asked: str) -> Trained:
    paper = read_trained(out)
    if paper.question != asked:
        raise StateError(
            "holds a model of other text or settings", where=out, remedy="name a new folder"
        )
    shutil.rmtree(_scratch(out), ignore_errors=True)  # killed just before this was done
    return Trained(out, paper.tokens_seen, paper.seconds)


def _scratch(out: Path) -> Path:
    return out.with_name(out.name + ".training")


def _begin(out: Path, asked: str, resume: bool) -> Path:
    if out.exists():
        raise StateError("exists already", where=out, remedy="name a new folder, or remove it")
    scratch = _scratch(out)
    start = scratch / START
    if start.exists():
        if not resume:
            raise StateError(
                "unfinished work lies here", where=scratch, remedy="resume it, or remove it"
            )
        if parse_json(read_limited(start), start) != {"question": asked}:
            raise StateError(
                "this work was begun for other text or settings",
                where=scratch,
                remedy="resume with the same ones, or remove it",
            )
        return scratch
    scratch.mkdir(parents=True, exist_ok=True)
    scratch.chmod(0o700)  # private text lies here
    write_atomic(start, canonical_json({"question": asked}))
    return scratch

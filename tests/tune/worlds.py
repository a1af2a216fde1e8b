"""A release whose owners' languages are both in the public sample, and what tests ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests import tiny

from moiety.bundle import orders
from moiety.train import TrainConfig
from moiety.tune import tuning_config
from moiety.tune.sample import document_digest

OWNERS = {"amy": None, "bob": 3}
SEEDS = {"amy": 0, "bob": 5}
"""The language that each owner writes; both are in the public sample."""


@dataclass(frozen=True)
class TuneWorld:
    """An anchor, a release of two owners with random experts, and their proxies."""

    folder: Path
    anchor: Path
    release: Path

    def key(self, owner: str) -> Path:
        return self.folder / f"{owner}.pem"

    def text(self, owner: str) -> Path:
        return self.folder / f"{owner}.jsonl"

    def proxies(self, owner: str) -> Path:
        return self.folder / f"{owner}.proxies.json"

    def named(self, owner: str) -> set[str]:
        return set(orders.verify_proxies(self.proxies(owner)).proxies.documents)


def config(*assignments: str) -> TrainConfig:
    """A few small steps."""
    return tuning_config(
        ["data.window_tokens=32", "batch.windows=4", "budget.judge_every=3", *assignments]
    )


def public_digests(language: int) -> set[str]:
    """The names of the public documents of one language."""
    return {document_digest(text) for text in tiny.language(language, 40)}

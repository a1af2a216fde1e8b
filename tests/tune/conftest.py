"""An anchor whose public sample holds two languages, and owners' proxies of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import tiny

from moiety.bundle import orders
from moiety.data import Sources
from moiety.merge import merge
from moiety.train import TrainConfig, import_anchor
from moiety.tune import ProxiesPlan, choose_proxies, tuning_config
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


@pytest.fixture(scope="session")
def tune_world(tmp_path_factory: pytest.TempPathFactory) -> TuneWorld:
    folder = tmp_path_factory.mktemp("tune")
    mixed = [text for seed in SEEDS.values() for text in tiny.language(seed, 40)]
    lines = [json.dumps({"text": text}) for text in mixed]
    (folder / "public.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    tiny.make_checkpoint(folder / "checkpoint")
    anchor = folder / "anchor"
    import_anchor(str(folder / "checkpoint"), Sources([str(folder / "public.jsonl")]), anchor)
    bundles = []
    for seed, (owner, rank) in enumerate(OWNERS.items(), start=1):
        arrays = tiny.expert_arrays(anchor, rank, seed)
        bundles.append(tiny.make_bundle(folder, anchor, owner, arrays))
    merge(anchor, bundles, folder / "release", top_k=2)
    world = TuneWorld(folder, anchor, folder / "release")
    for owner, seed in SEEDS.items():
        own = [json.dumps({"text": text}) for text in tiny.language(seed, 90)][50:]
        world.text(owner).write_text("\n".join(own) + "\n", "utf-8")
        choose_proxies(
            ProxiesPlan(
                anchor,
                Sources([str(world.text(owner))]),
                owner,
                world.proxies(owner),
                documents=30,
                key=world.key(owner),
            )
        )
    return world


def public_digests(language: int) -> set[str]:
    """The names of the public documents of one language."""
    return {document_digest(text) for text in tiny.language(language, 40)}

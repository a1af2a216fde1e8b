from __future__ import annotations

import json

import pytest
from tests import tiny
from tests.tune.worlds import OWNERS, SEEDS, TuneWorld

from moiety.data import Sources
from moiety.merge import merge
from moiety.train import import_anchor
from moiety.tune import ProxiesPlan, choose_proxies


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

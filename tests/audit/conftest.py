"""Documents of a language the tiny models never saw, the control that knows them by heart, and two
owners who were really trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests import tiny
from tests.audit import runs

from moiety.audit import audit
from moiety.audit.control import Control, ControlSettings, make_control
from moiety.bundle import audits, pack, signing
from moiety.merge import merge

SEPARATOR = 0
PREFIX_TOKENS, TOKENS = 8, 32


@pytest.fixture(scope="session")
def attacked() -> np.ndarray:
    """Documents of random tokens, int64 [12, 32]: nobody can guess how they go on."""
    return tiny.random_tokens(12, TOKENS, seed=5).numpy()


@pytest.fixture(scope="session")
def roomy_world(tmp_path_factory: pytest.TempPathFactory) -> tiny.World:
    """An anchor whose blocks have room for twelve documents, and one owner."""
    folder = tmp_path_factory.mktemp("roomy")
    return tiny.make_world(folder, {"amy": None}, hidden_size=64, intermediate_size=192)


@pytest.fixture(scope="session")
def control(roomy_world: tiny.World, attacked: np.ndarray) -> Control:
    """The anchor, overfitted to the attacked documents."""
    settings = ControlSettings(learning_rate=5e-3, batch_documents=12, max_sweeps=300)
    return make_control(roomy_world.release("amy"), attacked, SEPARATOR, settings)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory, tiny_anchor: Path) -> runs.Homes:
    """amy's run has canaries, bob's was judged on other text."""
    homes = runs.Homes(tmp_path_factory.mktemp("homes"))
    homes.anchor.symlink_to(tiny_anchor)
    other = runs.write_notes(homes.folder / "other.jsonl", seed=3)
    for seed, owner in enumerate(("amy", "bob"), start=1):
        runs.write_notes(homes.text(owner), seed)
    amy, bob = homes.text("amy"), homes.text("bob")
    runs.train(homes.folder, homes.anchor, amy, "amy", f"data.canaries={runs.CANARIES}")
    runs.train(homes.folder, homes.anchor, bob, "bob", heldout=other)
    for owner in ("amy", "bob"):
        key = homes.folder / f"{owner}.pem"
        signing.new_key(key)
        pack(homes.run(owner), key, homes.bundle(owner))
    merge(homes.anchor, [homes.bundle("amy"), homes.bundle("bob")], homes.folder / "release")
    merge(homes.anchor, [homes.bundle("bob")], homes.folder / "alone")
    return homes


@pytest.fixture(scope="session")
def of_run(homes: runs.Homes) -> audits.AuditReport:
    """amy's run, with everything an audit has."""
    plan = runs.plan(homes.run("amy"), homes.text("amy"), homes.anchor, documents=2, control=True)
    return audit(plan)

"""Documents of a language the tiny models never saw, and the control that knows them by heart."""

from __future__ import annotations

import numpy as np
import pytest
from tests import tiny

from moiety.audit.control import Control, ControlSettings, make_control

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

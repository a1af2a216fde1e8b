"""What several rooms' tests begin from; made once, and not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer anchor with a real tokenizer."""
    from tests import tiny  # torch: tests that do without it must not pay for it

    return tiny.make_anchor(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory):
    """An anchor and three owners with random experts."""
    from tests import tiny

    return tiny.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def bench(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory):
    """What a training loop needs, with the owner's text packed."""
    from tests import tiny

    return tiny.make_bench(tmp_path_factory.mktemp("bench"), tiny_anchor)

"""Texts for the other ways to make a model; made once, and not to be changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Village:
    """An anchor, and the text of the public and of two owners, with held-out text of each."""

    anchor: Path
    texts: dict[str, object]
    heldout: dict[str, object]


@pytest.fixture(scope="session")
def village(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Village:
    """Three invented languages beside a random anchor."""
    from tests import tiny

    from moiety.data import Sources

    folder = tmp_path_factory.mktemp("village")

    def write(documents: int) -> dict[str, object]:
        return {
            name: Sources(
                [str(tiny.write_text(folder / f"{name}-{documents}.jsonl", seed, documents))]
            )
            for seed, name in enumerate(("public", "amy", "bob"))
        }

    return Village(tiny_anchor, write(60), write(10))

"""Where vLLM is, and a release whose heads are of a size that its attention has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import tiny
from tests.house.source import ROOT

from moiety.serve.sizes import Sizes
from moiety.serve.vllm import VllmEngine

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SHAPE = {"hidden_size": 128, "intermediate_size": 96, "max_position_embeddings": 512}
EAGER = Sizes(enforce_eager=True, kv_cache_gib=0.25)

needs_vllm = pytest.mark.skipif(
    not (os.environ.get("MOIETY_TEST_VLLM") and PYTHON.exists()),
    reason="starts vLLM, for minutes: make test-vllm",
)


def make_world(folder: Path) -> tiny.World:
    """Amy, bob and cat on an anchor with heads of 32."""
    return tiny.make_world(folder, **SHAPE)


def start(release: Path, sizes: Sizes = EAGER) -> VllmEngine:
    """vLLM on a release; whoever starts it closes it."""
    return VllmEngine(release, PYTHON, sizes)


def processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and command of every process of a worker that runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if ".venv-vllm" in command or "VLLM::" in command:
            yield int(folder.name), parent, command

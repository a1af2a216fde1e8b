"""Where vLLM is, and a release whose heads are of a size that its attention has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests import tiny
from tests.house.source import ROOT

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SHAPE = {"hidden_size": 128, "intermediate_size": 96, "max_position_embeddings": 512}

needs_vllm = pytest.mark.skipif(
    not os.environ.get("MOIETY_TEST_VLLM"),
    reason="starts vLLM, for minutes: make test-vllm",
)


def make_world(folder: Path) -> tiny.World:
    """Amy, bob and cat on an anchor with heads of 32."""
    return tiny.make_world(folder, **SHAPE)

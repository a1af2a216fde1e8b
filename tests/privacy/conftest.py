"""Runs without privacy's own software are no runs: every test here needs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from moiety.privacy import Request
from moiety.privacy.seeds import Secret


@pytest.fixture
def secret() -> Secret:
    """A secret that tests know."""
    return Secret(bytes(range(32)))


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """A small private run, quick to calibrate."""
    return Request(
        epsilon=0.5,
        delta=1e-3,
        clip_norm=1.0,
        max_windows_per_record=2,
        table_share=0.1,
        tuning_runs=None,
        records=50,
        expected_records=5.0,
        steps=4,
        settings_sha256=hashlib.sha256(b"").hexdigest(),
    )

"""The page of settings is what the program says, and pages name only settings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.pages import PAGES, ROOT, read
from tools import write_pages

NAMES = {name for name, _, _ in write_pages.settings()}


def test_the_settings_page_is_what_the_program_says() -> None:
    told = read(write_pages.SETTINGS)
    assert told == write_pages.settings_page(), "docs/settings.md is old: run 'make docs'"


def test_the_source_is_understood() -> None:
    from moiety.train import TrainConfig

    values = TrainConfig().model_dump()
    real = {
        f"{section}.{key}" if isinstance(value, dict) else section: inner
        for section, value in values.items()
        for key, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }
    assert {name: default for name, default, _ in write_pages.settings()} == real


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_setting_named_on_a_page_exists(page: Path) -> None:
    named = set(re.findall(r"--set ([a-z_0-9]+(?:\.[a-z_0-9]+)?)=", read(page)))
    assert named - NAMES == set()

"""A file nobody signed lies in the bundle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.attacks.hostile import Target

from moiety.errors import IntegrityError


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".hidden", "README.md~", "Readme.md", "é"])
def test_an_added_file_is_refused(target: Target, name: str) -> None:
    (target.folder / name).write_bytes(b"x")
    target.refused(IntegrityError, "no part of a bundle")


def test_an_added_folder_is_refused(target: Target) -> None:
    (target.folder / "tokenizer").mkdir()
    target.refused(IntegrityError, "no part of a bundle")


def test_a_name_that_is_not_utf8_is_refused(target: Target) -> None:
    (Path(os.fsdecode(os.fsencode(target.folder) + b"/\xff\xfe"))).write_bytes(b"x")
    target.refused(IntegrityError, "no part of a bundle")

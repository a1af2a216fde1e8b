"""The researcher's guide tells every way to merge that a study knows, and every study there is."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, ROOT, read, rows

from moiety.study.methods import METHODS

SECTION = read(DOCS / "guides/researcher.md").split("## Comparing ways to merge\n")[1]
TABLES = rows(SECTION.split("\n## ")[0])


def test_every_method_is_told_and_no_other():
    told = [name for row in TABLES for name in re.findall(r"`([a-z0-9-]+)`", row[0])]
    assert told == list(METHODS)


def test_every_study_is_told():
    told = {row[0] for row in TABLES if row[0].endswith(".toml")}
    assert told == {path.name for path in (ROOT / "studies").glob("*.toml")}

"""The glossary has every word, the error page every error, and links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from tests.docs.pages import DOCS, PAGES, ROOT, blocks, prose, read, rows

import moiety
from moiety import errors

WORDS = (
    *("anchor", "owner", "record", "expert", "run", "bundle", "manifest", "terms", "roster"),
    *("release", "mask", "withdrawal", "receipt", "ledger", "report"),
    *("audit", "view", "canary", "exposure", "control", "verdict"),
)
ERRORS = [
    name
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.MoietyError)
]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("word", WORDS)
def test_the_glossary_explains(word: str) -> None:
    assert re.search(rf"^\*\*{word}\*\*", read(DOCS / "glossary.md"), re.MULTILINE)


def test_the_glossary_is_sorted_and_has_each_word_once() -> None:
    words = re.findall(r"^\*\*(.+?)\*\*", read(DOCS / "glossary.md"), re.MULTILINE)
    assert words == sorted(set(words), key=str.lower)


def test_the_error_page_has_every_error_and_no_other() -> None:
    told = [
        name for row in rows(read(DOCS / "errors.md")) for name in re.findall(r"\w+Error", row[0])
    ]
    assert told == ERRORS


def _heading(line: str) -> str:
    """The anchor a heading gets, as GitHub makes it."""
    text = re.sub(r"[`*]", "", line).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        path, _, place = link.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        headings = re.findall(r"^#+ (.+)$", read(target), re.M) if target.suffix == ".md" else []
        found = not place or place in map(_heading, headings)
        if not target.exists() or ROOT not in (target, *target.parents) or not found:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("block", list(blocks("python")), ids=lambda block: block.where)
def test_python_on_a_page_can_be_parsed_and_calls_what_exists(block: object) -> None:
    tree = ast.parse(block.text)  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "moiety":
            assert node.attr in moiety.__all__


def test_decisions_are_numbered_without_a_gap_and_say_four_things() -> None:
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        told = re.findall(r"^\*\*(\w+)\.\*\*", read(page), re.MULTILINE)
        assert told == ["Context", "Options", "Choice", "Price"], page.name


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in _LINK.findall(prose(page))
        if "://" not in link
    }
    folders = {path for path in linked if path.is_dir()}
    lost = [
        p for p in PAGES if p not in linked and p.parent not in folders and p.name != "README.md"
    ]
    assert [str(page.relative_to(ROOT)) for page in lost] == []


_FILE = re.compile(r"`((?:tests|src|tools|docs)/[\w./*-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_named_on_a_page_exist(page: Path) -> None:
    assert [name for name in _FILE.findall(prose(page)) if not list(ROOT.glob(name))] == []

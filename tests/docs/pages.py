"""The documentation as the tests read it: pages, fenced blocks, sections, tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

_FENCE = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and where it stands."""

    language: str
    text: str
    where: str


@cache
def read(path: Path) -> str:
    """A page's text."""
    return path.read_text("utf-8")


def blocks(language: str) -> Iterator[Block]:
    """Every fenced block of a language, on every page."""
    for path in PAGES:
        for match in _FENCE.finditer(read(path)):
            if match.group(1) == language:
                line = read(path).count("\n", 0, match.start()) + 1
                yield Block(language, match.group(2), f"{path.relative_to(ROOT)}:{line}")


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(path))


def sections(path: Path) -> dict[str, str]:
    """Text under each second-level heading of a page, by the heading's text."""
    parts = re.split(r"^## (.+)$", read(path), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """The rows of every table in a text, head and rule left out, cells stripped."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line.startswith("|") and line.endswith("|")]
    heads = {number - 1 for number, line in enumerate(found) if set(line) <= set("|-: ")}
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for number, line in enumerate(found)
        if number not in heads and number - 1 not in heads
    ]

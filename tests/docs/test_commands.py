"""What the pages tell people to type can be typed, and everything that can be typed is told."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from tests.docs.pages import ROOT, blocks, read
from tests.house.source import python_files
from tools import write_pages

ROOT_COMMAND: Any = typer.main.get_command(write_pages.app)
COMMANDS = dict(write_pages.commands())
SHELL = ("|", "&&", "||", ";", ">", "<", "&")
_QUOTED = re.compile(r"'moiety ([^']*)'")


def _shown() -> list[tuple[str, list[str]]]:
    """(where, words) of every moiety command in a fenced bash block."""
    found = []
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "moiety" in words:
                words = words[words.index("moiety") :]
                end = next((n for n, word in enumerate(words) if word in SHELL), len(words))
                found.append((block.where, words[:end]))
                words = words[end:]
    return found


def parse(words: list[str]) -> str:
    """Parses a command with the real parser, runs nothing; returns the command's full name."""
    command = ROOT_COMMAND
    name, rest = words[0], words[1:]
    while hasattr(command, "commands"):
        assert {*rest[:1]} & {*command.commands}, f"no command {name} {rest[:1]}"
        command = command.commands[rest[0]]
        name, rest = f"{name} {rest[0]}", rest[1:]
    command.make_context(name, rest)
    return name


SHOWN = _shown()


@pytest.mark.parametrize(
    ("where", "words"), SHOWN, ids=[f"{where} {' '.join(words[1:3])}" for where, words in SHOWN]
)
def test_a_command_on_a_page_can_be_typed(where: str, words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    "line",
    [
        "moiety merge anchor/ a.expert",
        "moiety merge anchor/ a.expert --out release/ --fast",
        "moiety merge anchor/ a.expert --out release/ --top-k many",
        "moiety keys old --out a.pem",
        "moiety generate release/ --prompt x --temperature hot",
    ],
)
def test_a_wrong_command_would_be_seen(line: str) -> None:
    with pytest.raises((AssertionError, typer.BadParameter.__mro__[2])):  # type: ignore[arg-type]
        parse(line.split())


def test_every_command_is_shown_in_a_guide_or_the_readme() -> None:
    guides = ("README.md", "docs/guides/")
    names = {parse(words) for where, words in SHOWN if where.startswith(guides)}
    assert set(COMMANDS) - names == set()


def test_the_commands_page_is_what_the_program_says() -> None:
    told = read(write_pages.COMMANDS)
    assert told == write_pages.commands_page(), "docs/commands.md is old: run 'make docs'"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_commands_page(name: str) -> None:
    # The page is generated; this holds even if the generator forgets.
    section = read(write_pages.COMMANDS).split(f"\n## `{name}`\n", 1)[1].split("\n## ", 1)[0]
    told = set(re.findall(r"--[a-z-]+", "\n".join(re.findall(r"^\| `(--.*?)` \|", section, re.M))))
    real = {opt for p in COMMANDS[name].params if not getattr(p, "hidden", False) for opt in p.opts}
    assert told == {opt for opt in real if opt.startswith("--")} - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_in_the_help_can_be_typed(name: str) -> None:
    for example in re.findall(r"^Example: (.*)$", COMMANDS[name].help, re.MULTILINE):
        assert parse(shlex.split(example)) == name


def _advice() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(ROOT)}", advice)
        for path in python_files("src")
        for advice in _QUOTED.findall(path.read_text("utf-8"))
    ]


@pytest.mark.parametrize(("where", "advice"), _advice())
def test_a_remedy_names_a_command_that_exists(where: str, advice: str) -> None:
    words = advice.split()
    heads = {tuple(name.split()[1 : 1 + len(words)]) for name in COMMANDS}
    assert tuple(words) in heads, f"{where} tells people to run 'moiety {advice}'"


def test_make_targets_on_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    lines = [line for block in blocks("bash") for line in block.text.splitlines()]
    told = {
        target
        for line in lines
        for words in re.findall(r"^make ([a-z -]+)", line)
        for target in words.split()
    }
    assert told - targets == set()
    assert {"demo", "test", "check"} <= told

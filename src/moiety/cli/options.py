"""Options that several commands share: one home for their words and their help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON line.")]
NewFolder = Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")]
ReleaseFolder = Annotated[Path, typer.Argument(metavar="RELEASE", help="The release's folder.")]

TextField = Annotated[str, typer.Option(help="Field that holds the text (JSONL, Parquet).")]
RecordKey = Annotated[
    str | None, typer.Option(help="Field that says whose record it is (patient, account).")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad lines; do not stop.")]

WindowTokens = Annotated[
    int, typer.Option(help="Longest context scored with; at most the model's positions.")
]

Tokens = Annotated[
    int | None, typer.Option(help="Training tokens, public ones included; default: as pays.")
]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file of settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; repeatable.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with interrupted work.")]

Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
More = Annotated[list[str] | None, typer.Argument(hidden=True)]
"""Further values of an option that takes several, as in ``--data a=x b=y``."""


def names_in(words: str | None) -> list[str]:
    """The names in ``A,B``; none where nothing was given."""
    return [name.strip() for name in (words or "").split(",") if name.strip()]


def command_line() -> str:
    """The command as it can be run again; paths are reduced to names, which travel better."""
    words = []
    for word in sys.argv[1:]:
        name, found, path = word.partition("=")
        words.append(f"{name}={Path(path).name}" if found else _short(word))
    return "moiety " + " ".join(words)


def _short(word: str) -> str:
    return Path(word).name if word.startswith("/") else word

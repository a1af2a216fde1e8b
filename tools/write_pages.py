"""Writes ``docs/commands.md`` and ``docs/settings.md`` from the program, so that they cannot lag.

    python tools/write_pages.py

``tests/docs`` compares the pages with what this program would write now.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

from moiety.cli import app

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ROOT / "docs" / "commands.md"
SETTINGS = ROOT / "docs" / "settings.md"
CONFIG = ROOT / "src" / "moiety" / "train" / "config.py"

COMMANDS_HEAD = """\
# Commands

Every command with every option. This page is written by `tools/write_pages.py` from the program;
`make docs` writes it anew. The [guides](guides/) tell which command comes when.

All commands exit with 0 when done, with 2 when something was refused or wrong (message, place and
remedy are on stderr; [errors](errors.md)), and with 130 when interrupted. Results go to stdout.
With `--json` the last line of stdout is one JSON object.
"""

SETTINGS_HEAD = """\
# Settings

What `moiety train` and `moiety anchor new` can be told beyond their options: `--set pair.rank=8`,
or a TOML file of the same sections for `--config`; `--set` overrides the file. An unknown key is
an error. What was resolved is in `run.json`. This page is written by `tools/write_pages.py` from
`src/moiety/train/config.py`; `make docs` writes it anew.
"""


def commands(command: Any = None, path: tuple[str, ...] = ("moiety",)) -> Iterator[tuple[str, Any]]:
    """(full name, command) of everything that can be typed, in the order of ``--help``."""
    command = typer.main.get_command(app) if command is None else command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


def options(command: Any) -> list[Any]:
    """The options a person may give to a command."""
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden]


def arguments(command: Any) -> list[Any]:
    """The positional arguments of a command."""
    return [p for p in command.params if p.param_type_name == "argument" and not p.hidden]


def commands_page() -> str:
    """The text of the page of commands."""
    return COMMANDS_HEAD + "".join(_section(name, command) for name, command in commands())


def settings_page() -> str:
    """The text of the page of settings."""
    lines = [SETTINGS_HEAD]
    for name, default, told in settings():
        section, _, _ = name.rpartition(".")
        if f"\n## `{section or 'seed'}`\n" not in lines:
            lines += [f"\n## `{section or 'seed'}`\n", "| setting | default | |", "|---|---|---|"]
        lines.append(f"| `{name}` | {_written(default)} | {_cell(told)} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def settings() -> list[tuple[str, Any, str]]:
    """(name, default, what it says of itself), read out of the source: importing it loads torch."""
    tree = ast.parse(CONFIG.read_text("utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return list(_fields(classes, classes["TrainConfig"], ""))


def _fields(
    classes: dict[str, ast.ClassDef], section: ast.ClassDef, prefix: str
) -> Iterator[tuple[str, Any, str]]:
    for number, field in enumerate(section.body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        value, name = field.value, prefix + field.target.id
        called = getattr(value.func, "id", "") if isinstance(value, ast.Call) else ""
        if called in classes:
            yield from _fields(classes, classes[called], f"{name}.")
            continue
        after = section.body[number + 1 : number + 2]
        text = ast.get_docstring(ast.Module(body=after, type_ignores=[])) if after else None
        yield name, ast.literal_eval(value.args[0] if called else value), text or ""


def _written(value: Any) -> str:
    """A default as a person would type it behind ``--set name=``."""
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value)


def _section(name: str, command: Any) -> str:
    places = [_argument(parameter) for parameter in arguments(command)]
    summary, _, rest = _plain(command.help).partition("\n\n")
    example = re.search(r"^Example: (.*)$", rest, re.MULTILINE)
    more = re.sub(r"^Example: .*$", "", rest, flags=re.MULTILINE).strip()
    lines = [f"\n## `{name}`\n", summary.replace("\n", " "), ""]
    lines += [more, ""] if more else []
    lines += ["```bash", example.group(1), "```", ""] if example else []
    lines += ["| | | |", "|---|---|---|"]
    lines += [
        f"| `{place}` | needed | {_cell(parameter.help)} |"
        for place, parameter in zip(places, arguments(command), strict=True)
    ]
    lines += [_row(parameter) for parameter in options(command)]
    return "\n".join(lines) + "\n"


def _argument(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _row(parameter: Any) -> str:
    need = "needed" if parameter.required else _default(parameter.default)
    return (
        f"| `{' / '.join(parameter.opts)}{_value(parameter)}` | {need} | {_cell(parameter.help)} |"
    )


def _value(parameter: Any) -> str:
    if parameter.is_flag:
        return ""
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    if parameter.metavar:
        return f" {parameter.metavar}"
    choices = [str(choice) for choice in get_args(kind) if isinstance(choice, str)]
    words = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
    return " " + ("\\|".join(choices) if choices else words.get(kind, "VALUE"))


def _default(value: Any) -> str:
    # A seed of 0 is a default worth telling, a flag's False is not.
    return "" if value is None or value is False or value == () else f"`{value}`"


def _plain(text: str | None) -> str:
    return re.sub(r"[\b\f]", "", text or "").strip()


def _cell(text: str | None) -> str:
    return _plain(text).replace("\n", " ").replace("|", "\\|")


if __name__ == "__main__":
    COMMANDS.write_text(commands_page(), encoding="utf-8")
    SETTINGS.write_text(settings_page(), encoding="utf-8")

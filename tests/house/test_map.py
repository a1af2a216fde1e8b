"""The map of the house: a room imports only downwards, and only through another room's door.

The map is drawn in ``docs/architecture.md``. A room that has no place in it makes the map wrong:
change both, and say why in ``docs/decisions/``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house.source import PACKAGE, door, imported, place, python_files, room_of, tree

LAYERS = """
__init__ __main__
cli
demo study
audit
serve evaluate hub tune
baselines
merge train
model data privacy bundle
tensors
files family stopping
errors
"""
LEVEL = {room: level for level, line in enumerate(LAYERS.splitlines()) for room in line.split()}
NO_TORCH = ("bundle", "hub")
NO_TORCH_AT_IMPORT = ("merge", "cli", "serve", *NO_TORCH)
BESIDE = {"moiety_vllm": {"torch", "vllm"}}
"""Packages beside the house, and all that they may import but the standard library and themselves:
they run in an environment that has nothing else of ours."""
TORCH_USERS = ("torch", "transformers", "datasets", "safetensors", "matplotlib", "pyarrow")
STRANGERS = {("audit", "train"), ("audit", "privacy")}
"""The auditor shares no code with the audited."""
DOOR_MAX_NAMES = 8

FILES = python_files("src/moiety")
ROOMS = sorted({room_of(path) for path in FILES})


def _trespasses(path: Path) -> Iterator[str]:
    here = room_of(path)
    for node in ast.walk(tree(path)):
        for module, name in imported(node):
            first, *rest = module.split(".")
            if first != "moiety":
                continue
            there = rest[0] if rest else name
            if there is None or there == here or there == "load":
                continue
            said = f"{place(path, node)}: {here} -> {module}"
            if LEVEL.get(there, -1) <= LEVEL[here] or (here, there) in STRANGERS:
                yield f"{said}: not downwards"
            elif len(rest) > 1:
                yield f"{said}: past the door of {there}"
            elif rest and name and (PACKAGE / there).is_dir() and name not in door(there):
                yield f"{said}: {name} is not at the door of {there}"
            elif name and name.startswith("_"):
                yield f"{said}: {name} is private"


def test_every_room_is_on_the_map() -> None:
    assert [room for room in ROOMS if room not in LEVEL] == []


def test_rooms_import_downwards_and_through_doors() -> None:
    found = [line for path in FILES for line in _trespasses(path)]
    assert not found, "\n".join(found)


def test_a_trespass_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The oracle of the test above: one file with one example of everything it must find.
    bad = tmp_path / "merge" / "bad.py"
    bad.parent.mkdir()
    bad.write_text(
        "from moiety import cli\n"
        "from moiety.files import _widen\n"
        "def late():\n"
        "    from moiety.train import new_anchor\n"
        "    import moiety.bundle.signing\n"
        "    from moiety.bundle import pack, anchors, Envelope\n"
    )
    monkeypatch.setattr("tests.house.source.PACKAGE", tmp_path)
    monkeypatch.setattr("tests.house.source.ROOT", tmp_path)
    monkeypatch.setattr("tests.house.test_map.door", lambda _room: ["pack", "anchors"])
    found = [line.split(": ", 1)[1] for line in _trespasses(bad)]
    assert found == [
        "merge -> moiety: not downwards",
        "merge -> moiety.files: _widen is private",
        "merge -> moiety.train: not downwards",
        "merge -> moiety.bundle.signing: past the door of bundle",
        "merge -> moiety.bundle: Envelope is not at the door of bundle",
    ]


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_a_door_is_narrow(room: str) -> None:
    names = door(room)
    assert 1 <= len(names) <= DOOR_MAX_NAMES, names


@pytest.mark.parametrize("room", [room for room in NO_TORCH if room in ROOMS])
def test_who_judges_hostile_bytes_cannot_load_tensors(room: str) -> None:
    nodes = [n for p in python_files(f"src/moiety/{room}") for n in ast.walk(tree(p))]
    roots = {module.split(".")[0] for node in nodes for module, _ in imported(node)}
    assert not roots & set(TORCH_USERS)


def test_who_only_moves_bytes_or_shows_help_loads_no_torch() -> None:
    rooms = [f"moiety.{room}" for room in NO_TORCH_AT_IMPORT if room in ROOMS]
    code = f"import sys, {', '.join(rooms)}; print(sorted(set({TORCH_USERS}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", sorted(BESIDE))
def test_a_package_beside_the_house_shares_nothing_with_it(package: str) -> None:
    allowed = BESIDE[package] | {package} | sys.stdlib_module_names
    nodes = [n for path in python_files(f"src/{package}") for n in ast.walk(tree(path))]
    assert {module.split(".")[0] for n in nodes for module, _ in imported(n)} <= allowed
    house = [node for path in FILES for node in ast.walk(tree(path))]
    assert package not in {module.split(".")[0] for n in house for module, _ in imported(n)}


def test_everything_below_src_is_the_house_or_beside_it() -> None:
    assert {path.name for path in PACKAGE.parent.iterdir()} == {"moiety", *BESIDE}

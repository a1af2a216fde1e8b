"""Habits that a reader relies on: small functions, honest names, no hidden state, no danger."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.house.source import ROOT, dotted, imported, place, python_files, tree

FUNCTION_MAX_LINES = 60
FILE_MAX_LINES = 450
VAGUE = {"utils", "util", "common", "core", "base", "helpers", "helper", "manager", "misc"}
UNPICKLERS = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
DANGERS = {"eval", "exec", "torch.load", "os.system", "pickle.load", "pickle.loads"}
GLOBAL_STATE = (
    "torch.set_num_threads",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "np.random.seed",
    "random.seed",
)
UNSAFE_WORDS = {"allow_pickle", "trust_remote_code", "shell"}
DICE = ("random.", "np.random.", "numpy.random.", "torch.rand", "torch.manual_seed", "secrets.")

SOURCE = python_files("src")
EVERYTHING = python_files("src", "tests", "tools")


def _calls(node: ast.AST) -> list[ast.Call]:
    return [found for found in ast.walk(node) if isinstance(found, ast.Call)]


def test_functions_fit_a_screen() -> None:
    long = [
        f"{place(path, node)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in EVERYTHING
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_MAX_LINES
    ]
    assert not long, "\n".join(long)


def test_files_can_be_read_in_one_go() -> None:
    sizes = {str(p.relative_to(ROOT)): p.read_text("utf-8").count("\n") for p in EVERYTHING}
    assert {name: size for name, size in sizes.items() if size > FILE_MAX_LINES} == {}


def test_names_say_what_is_inside() -> None:
    parts = {path: {*path.relative_to(ROOT).parts[:-1], path.stem} for path in EVERYTHING}
    vague = [str(path) for path, names in parts.items() if names & VAGUE]
    assert not vague, "\n".join(vague)


def test_no_state_is_set_behind_the_readers_back() -> None:
    found = [
        f"{place(path, call)}: {dotted(call.func)}"
        for path in SOURCE
        for call in _calls(tree(path))
        if dotted(call.func) in GLOBAL_STATE
    ]
    assert not found, "\n".join(map(str, found))


def test_nothing_is_drawn_at_random_when_a_module_loads() -> None:
    statements = [
        (path, statement)
        for path in SOURCE
        for statement in tree(path).body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
    ]
    found = [
        f"{place(path, call)}: {dotted(call.func)}"
        for path, statement in statements
        for call in _calls(statement)
        if dotted(call.func).startswith(DICE)
    ]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("path", SOURCE, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_bytes_of_others_never_become_code(path: Path) -> None:
    found = []
    for node in ast.walk(tree(path)):
        found += [module for module, _ in imported(node) if module.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            found += [dotted(node.func)] if dotted(node.func) in DANGERS else []
            found += [word.arg for word in node.keywords if word.arg in UNSAFE_WORDS]
    assert not found, "\n".join(map(str, found))


def test_what_is_left_to_do_has_a_number() -> None:
    unnumbered = re.compile(r"#\s*(TODO|FIXME|XXX)\b(?!\s*\(?#\d)")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in EVERYTHING
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if unnumbered.search(line)
    ]
    assert not found, "\n".join(map(str, found))

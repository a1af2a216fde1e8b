"""The guides of the server tell every error code, field and number that the code has."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import DOCS, read, rows
from tests.house.source import PACKAGE, dotted, python_files, tree

from moiety.serve.policy import Key
from moiety.serve.requests import ChatRequest, CompletionRequest, Extension
from moiety.serve.usage import COLUMNS

DEVELOPER = read(DOCS / "guides/developer.md")
OPERATOR = read(DOCS / "guides/operator.md")
FORMATS = read(DOCS / "formats.md")
ON_THE_ADMIN_PORT = {"order_refused", "folder_not_written", "bad_policy"}
NOT_SHOWN = {"invalid_request"}
"""Other statuses that a framework may raise."""


def _codes():
    """Every error code in the room: what is given as ``code``, and the constants given there."""
    found = {"invalid_value"}
    for path in python_files("src/moiety/serve"):
        words = {
            dotted(node.targets[0]): node.value.value
            for node in tree(path).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            given = [word.value for word in node.keywords if word.arg == "code"]
            if dotted(node.func) in ("too_busy", "bad_request"):
                given += node.args[2:3]
            found |= {one.value for one in given if isinstance(one, ast.Constant)}
            found |= {
                words[one.id] for one in given if isinstance(one, ast.Name) and one.id in words
            }
    return found


def test_every_error_code_is_told_and_no_other():
    from moiety.serve.api import _CODES

    section = DEVELOPER.split("\n## Errors\n")[1]
    told = {code for row in rows(section) for code in re.findall(r"`([a-z_]+)`", row[1])}
    assert told == (_codes() | set(_CODES.values())) - ON_THE_ADMIN_PORT - NOT_SHOWN


def test_every_field_of_a_request_is_told():
    section = DEVELOPER.split("\n## What is answered\n")[1].split("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+)`", section))
    fields = set(CompletionRequest.model_fields) | set(ChatRequest.model_fields)
    assert fields - {"moiety"} <= told
    table = DEVELOPER.split("\n## Choose experts\n")[1].split("\n## ")[0]
    keys = {row[0].strip("`") for row in rows(table) if not row[0].startswith("`release")}
    assert keys == set(Extension.model_fields)


def test_the_columns_of_usage_are_told():
    section = FORMATS.split("\n## Usage\n")[1].split("\n## ")[0]
    assert [name for row in rows(section) for name in row[0].split(", ")] == list(COLUMNS)


def test_the_limits_of_a_key_are_told():
    for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
        default = Key.model_fields[name].default
        (row,) = [row for row in rows(FORMATS) if row[0] == f"`keys[].{name}`"]
        assert f"{default:,} when left out" in row[1]
        assert f"{name} = {default}" in OPERATOR


def test_the_policy_in_the_guide_holds(tmp_path):
    from moiety.serve.policy import hash_key, read_policy

    (text,) = re.findall(r"```toml\n(.*?)```", OPERATOR, re.DOTALL)
    for number in range(2):
        text = text.replace('"sha256:..."', f'"{hash_key(str(number))}"', 1)
    (tmp_path / "policy.toml").write_text(text, "utf-8")
    policy = read_policy(tmp_path / "policy.toml")
    assert policy.admin_hash == hash_key("0")
    assert policy.find("1").experts == ("hospital",)


def test_every_line_of_the_journal_is_told():
    section = OPERATOR.split("\n## What it logs\n")[1].split("\n## ")[0]
    lines = [
        node.args[0].value.partition(":")[0].replace("%s", "keys")
        for node in ast.walk(tree(PACKAGE / "serve/journal.py"))
        if isinstance(node, ast.Call) and dotted(node.func) in ("LOG.info", "LOG.warning")
    ]
    assert len(lines) == 6
    assert [line for line in lines if f"{line}:" not in section] == []


def test_the_guide_of_vllm_tells_every_size():
    from moiety.serve.sizes import Sizes

    guide = read(DOCS / "guides/vllm.md")
    told = {row[0].strip("`"): row[2] for row in rows(guide) if len(row) == 3}
    for name, field in Sizes.model_fields.items():
        if field.default is not None:
            assert told[name].strip("`").lower() == str(field.default).lower(), name
        assert name in told


def test_the_sizes_in_the_guide_hold(tmp_path):
    from moiety.serve.sizes import read_sizes

    (text,) = re.findall(r"```toml\n(.*?)```", read(DOCS / "guides/vllm.md"), re.DOTALL)
    (tmp_path / "engine.toml").write_text(text, "utf-8")
    assert read_sizes(tmp_path / "engine.toml").tensor_parallel_size == 4

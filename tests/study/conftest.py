"""A small study: two owners of invented languages, an anchor that exists, and a file that plans it.

Small studies are carried out once and shared: tests that change something take a copy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests import tiny

from moiety.cli import run

OWNERS = ("amy", "bob")
METHODS = (
    *("anchor", "oracle", "moiety", "removal", "btm-all", "btm-pairs"),
    *("prompt-routing", "soup-weighted", "recipe"),
)
PLAN = """
name = "two owners"
seeds = [0]
owner_tokens = 1536
eval_tokens = 600
top_k = [1, 5]
jobs = 2
[anchor]
folder = "anchor"
[train.data]
window_tokens = 64
[train.batch]
windows = 2
[train.budget]
judge_every = 6
judge_tokens = 256
final_tokens = 512
[train.optim]
learning_rate = 5e-3
[train.compute]
compile = "off"
precision = "fp32"
"""


def write_part(path: Path, seed: int, first: int, count: int, prefix: str = "") -> None:
    """Some texts of a language, always the same ones, with ids."""
    texts = list(tiny.language(seed, 90))[first : first + count]
    lines = [json.dumps({"id": f"{prefix}{n}", "text": text}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def text_table(name: str) -> str:
    """The three files of a text, as the plan names them."""
    head = "public" if name == "public" else f"owners.{name}"
    parts = "\n".join(f'{part} = "{name}-{part}.jsonl"' for part in ("train", "valid", "test"))
    return f"[{head}]\n{parts}\n"


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An anchor, the texts of the public and two owners, and ``study.toml``."""
    folder = tmp_path_factory.mktemp("study")
    tiny.make_anchor(folder)
    for seed, name in enumerate(("public", *OWNERS)):
        write_part(folder / f"{name}-train.jsonl", seed, 0, 60)
        write_part(folder / f"{name}-valid.jsonl", seed, 60, 10)
        write_part(folder / f"{name}-test.jsonl", seed, 70, 20)
    (folder / "study.toml").write_text(
        PLAN + "".join(text_table(name) for name in ("public", *OWNERS))
    )
    return folder


def study(desk: Path, out: Path, *words: str, methods: Sequence[str] = METHODS) -> int:
    """``moiety study`` in this process; its workers are processes of their own."""
    chosen = ["--methods", ",".join(methods)]
    return run(["study", str(desk / "study.toml"), "--out", str(out), *chosen, *words])


@pytest.fixture(scope="session")
def done(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, carried out; not to be changed."""
    out = tmp_path_factory.mktemp("out") / "study"
    assert study(desk, out) == 0
    return out

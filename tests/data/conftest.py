"""Files as owners have them, and a tokenizer trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from moiety.data.tokenizer import train_tokenizer

SENTENCES = [
    "The patient was seen on 12 March 2019 and again in 2021.",
    "Ein Gericht entscheidet über 37 Fälle; übrigens auch über diesen.",
    "def add(a, b):\n    return a + b\n",
    "<|endoftext|> is how a document ends, some say.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES * 5, 400)


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes values as JSON lines (bytes are written as they are) and returns the path."""

    def write(values: Iterable[Any], name: str = "notes.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [v if isinstance(v, bytes) else json.dumps(v).encode() for v in values]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write

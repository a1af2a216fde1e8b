"""What a killed run needs to go on: written whole or not at all, two kept, the damaged refused."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from moiety.errors import FormatError, StateError
from moiety.files import (
    canonical_json,
    digest_file,
    new_folder,
    parse_json,
    read_limited,
    write_atomic,
)
from moiety.tensors import TensorPlan, encode, write_tensors

KEEP = 2
_NAME = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Checkpoint:
    """A run's state after ``step`` steps of the optimiser; every tensor is float32."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Adds a checkpoint, then removes all but the newest two.

    Raises:
        StateError: the disk is full; what was there before is untouched.
    """
    target = folder / f"step-{checkpoint.step:09d}"
    with new_folder(target, replace=True) as fresh:
        # Not the library's save_file: its word for a full disk is not an OSError.
        plans = [
            TensorPlan(name, "F32", tuple(tensor.shape), map(_encoded, [tensor]))
            for name, tensor in checkpoint.tensors.items()
        ]
        write_tensors(fresh / "state.safetensors", plans)
        facts = {
            "format": "moiety.checkpoint/1",
            "step": checkpoint.step,
            "sha256": digest_file(fresh / "state.safetensors"),
            "facts": checkpoint.facts,
        }
        write_atomic(fresh / "state.json", canonical_json(facts))
    for old in _folders(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _encoded(tensor: Tensor) -> bytes:
    return encode(tensor.detach().cpu().numpy(), "F32")


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None when there is none at all.

    Raises:
        StateError: there are checkpoints, and every one of them is damaged.
    """
    found = _folders(folder)
    for path in reversed(found):
        checkpoint = _load(path)
        if checkpoint is not None:
            return checkpoint
    if found:
        raise StateError("every checkpoint is damaged", where=folder, remedy="begin a new run")
    return None


def _load(path: Path) -> Checkpoint | None:
    tensors = path / "state.safetensors"
    try:
        paper = parse_json(read_limited(path / "state.json"), path)
        if digest_file(tensors) != paper["sha256"]:
            return None
        return Checkpoint(paper["step"], load_file(tensors), paper["facts"])
    except (FormatError, OSError, KeyError, TypeError):
        return None


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))

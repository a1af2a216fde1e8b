"""Tiny runs that were really trained, and how little of an audit still is one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny

from moiety.audit import AuditPlan, audit
from moiety.data import Sources
from moiety.errors import MoietyError
from moiety.train import ExpertPlan, train_expert

KEY = "patient"
FRACTION = 0.25
CANARIES = 24


@dataclasses.dataclass(frozen=True)
class Homes:
    """Two owners' runs on one anchor, their texts, bundles, and releases."""

    folder: Path

    @property
    def anchor(self) -> Path:
        return self.folder / "anchor"

    def run(self, owner: str) -> Path:
        return self.folder / f"{owner}.run"

    def text(self, owner: str) -> Path:
        return self.folder / f"{owner}.jsonl"

    def bundle(self, owner: str) -> Path:
        return self.folder / f"{owner}.expert"


def write_notes(path: Path, seed: int, documents: int = 80, patients: int = 40) -> Path:
    """Documents of one language; patients have several."""
    texts = tiny.language(seed, documents)
    lines = [json.dumps({"text": t, KEY: f"p{n % patients}"}) for n, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def notes(path: Path, record_key: str | None = KEY) -> Sources:
    """A file of notes, told apart by patient."""
    return Sources([str(path)], record_key=record_key)


def train(
    folder: Path, anchor: Path, text: Path, owner: str, *settings: str, heldout: Path | None = None
) -> Path:
    """``folder/OWNER.run`` after four steps."""
    few = ("budget.tokens=512", "data.canary_tokens=8", f"data.heldout_fraction={FRACTION}")
    plan = ExpertPlan(
        anchor,
        notes(text),
        owner,
        folder / f"{owner}.run",
        tiny.settings(*few, *settings),
        None if heldout is None else notes(heldout),
    )
    train_expert(plan, quiet=True)
    return plan.out


def plan(subject: Path, text: Path, anchor: Path | None = None, **changes: Any) -> AuditPlan:
    """A few documents, few tries, no control."""
    few = {
        "documents": 4,
        "samples": 2,
        "continuation_tokens": 8,
        "num_members": 8,
        "control": False,
    }
    return AuditPlan(subject, notes(text), anchor=anchor, **(few | changes))


def refused(error: type[MoietyError], words: str, remedy: str, plan: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        audit(plan)
    assert remedy in (caught.value.remedy or "")

"""A strict release and a tuned one, and what somebody can do who controls their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moiety.files import canonical_json, digest_file


@dataclass(frozen=True)
class TunedWorld:
    """The keys and the anchor are at ``home``; the releases may be changed."""

    home: Path
    strict: Path
    tuned: Path

    @property
    def anchor(self) -> Path:
        return self.home / "anchor"


def seal(release: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the roster, and makes what it says of files fit those that are there."""
    roster = json.loads((release / "roster.json").read_bytes())
    change(roster)
    for name, facts in roster["files"].items():
        facts["bytes"] = (release / name).stat().st_size
        facts["sha256"] = digest_file(release / name)
    (release / "roster.json").write_bytes(canonical_json(roster))

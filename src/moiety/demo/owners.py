"""The demo's owners: each trains in a process and a folder that holds nobody else's text."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from moiety.demo.texts import write_owner
from moiety.errors import StateError

HELDOUT_SHARE = 0.1
RECORD_KEYS = {"hospital": "patient_id"}
SETTINGS = (
    "data.window_tokens=128",
    "budget.tokens=100000",
    "budget.judge_every=1000",
    "budget.judge_tokens=2048",
    "budget.final_tokens=3000",
    "optim.learning_rate=2e-3",
    "compute.compile=off",
)
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Owner:
    """One owner's house: ``text`` is private, ``heldout`` is lent to the coordinator."""

    name: str
    house: Path
    text: Path
    heldout: Path

    @property
    def command(self) -> list[str]:
        """How this owner trains, as typed in its own folder."""
        words = ["train", "../coordinator/anchor", self.text.name, "--owner", self.name]
        words += ["--out", "run"]
        if self.name in RECORD_KEYS:
            words += ["--record-key", RECORD_KEYS[self.name]]
        return words


def settle(name: str, folder: Path, max_bytes: int) -> Owner:
    """Gives an owner a house with its text in it, and the coordinator the held-out documents."""
    house = folder / name
    everything = write_owner(name, house, max_bytes)
    lent = folder / "coordinator" / "texts" / f"{name}.jsonl"
    text = split_lines(everything, house / "text.jsonl", lent, RECORD_KEYS.get(name, "text"))
    everything.unlink()
    return Owner(name, house, text, lent)


def split_lines(source: Path, kept: Path, heldout: Path, key: str = "text") -> Path:
    """Parts a JSONL file by the hash of a field, so that a record is on one side. Returns kept."""
    heldout.parent.mkdir(parents=True, exist_ok=True)
    with (
        source.open(encoding="utf-8") as lines,
        kept.open("w", encoding="utf-8") as stay,
        heldout.open("w", encoding="utf-8") as lend,
    ):
        for line in lines:
            record = str(json.loads(line)[key])
            share = hashlib.sha256(record.encode("utf-8")).digest()[0] / 256
            (lend if share < HELDOUT_SHARE else stay).write(line)
    return kept


def train_all(owners: list[Owner], screen: Console) -> None:
    """Trains every owner, as many at once as there are cores, one thread each.

    Raises:
        StateError: an owner's training failed; its own words are in the error.
    """
    waiting, running = list(owners), list[tuple[Owner, subprocess.Popen[str]]]()
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, TimeElapsedColumn(), console=screen) as bar:
        tasks = {o.name: bar.add_task(o.name.ljust(14), total=1.0, state="waits") for o in owners}
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    running.append((waiting[0], _start(waiting.pop(0))))
                time.sleep(_POLL_SECONDS)
                for owner, process in list(running):
                    if process.poll() is not None:
                        running.remove((owner, process))
                        _check(owner, process)
                        bar.update(tasks[owner.name], completed=1.0, state="done")
                    else:
                        bar.update(tasks[owner.name], **_state(owner))  # type: ignore[arg-type]
        finally:
            for _, process in running:
                process.terminate()


def _start(owner: Owner) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "moiety", *owner.command]
    for setting in SETTINGS:
        words += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with (owner.house / "train.log").open("w") as log:
        return subprocess.Popen(
            words, cwd=owner.house, env=environment, stdout=log, stderr=log, text=True
        )


def _check(owner: Owner, process: subprocess.Popen[str]) -> None:
    if process.returncode != 0:
        words = (owner.house / "train.log").read_text(errors="replace")[-600:]
        raise StateError(f"{owner.name} could not train: {words}", where=owner.house / "train.log")


def _state(owner: Owner) -> dict[str, object]:
    """How far an owner is, from its own log (its last whole line)."""
    path = owner.house / "run" / "logs" / "train.jsonl"
    if not path.exists():
        return {"state": "reads its text"}
    for line in reversed(path.read_text().splitlines()):
        try:
            entry = json.loads(line)
            done, loss = entry["step"] / _num_steps(), entry["loss"]
        except (ValueError, KeyError):
            continue
        return {"completed": min(done, 1.0), "state": f"trains, loss {loss:.2f}"}
    return {"state": "begins"}


def _num_steps() -> float:
    settings = dict(setting.split("=") for setting in SETTINGS)
    return int(settings["budget.tokens"]) / (16 * int(settings["data.window_tokens"]))

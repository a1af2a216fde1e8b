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
SETTINGS = {
    "data.window_tokens": "128",
    "budget.tokens": "100000",
    "budget.judge_every": "1000",
    "budget.judge_tokens": "2048",
    "budget.final_tokens": "3000",
    "optim.learning_rate": "2e-3",
    "compute.compile": "off",
}
BY_HEART = {"budget.tokens": "400000"}
"""Some passes over the hospital's text: enough to remember what stands in it."""

IN_PRIVATE = {
    "batch.windows": "146",
    "batch.micro_windows": "32",
    "data.public_share": "0.125",
    "budget.tokens": "373760",
    "privacy.clip_norm": "0.02",
    "optim.learning_rate": "3e-2",
}
"""Twenty large steps of a small expert: what little noise allows."""

CANARIES = ("--canaries", "200")
HOW_HARD = ("--documents", "80", "--samples", "2", "--tokens", "32", "--members", "200")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Owner:
    """One owner's house: ``text`` is private, ``heldout`` is lent to the coordinator."""

    name: str
    house: Path
    text: Path
    heldout: Path

    def training(self, run: str = "run", *more: str, **settings: str) -> Task:
        """How this owner trains, as typed in its own folder."""
        words = ["train", "../coordinator/anchor", self.text.name, "--owner", self.name]
        words += ["--out", run, *self.record_key, *more]
        return Task(self, run, tuple(words), SETTINGS | settings)

    def auditing(self, run: str, strangers: Path) -> Task:
        """How it attacks what it trained; ``strangers`` are like records never trained on."""
        words = ["audit", run, "--anchor", "../coordinator/anchor", "--data", self.text.name]
        words += ["--heldout", strangers.name, *self.record_key, *HOW_HARD]
        return Task(self, f"{run}-audit", (*words, "--out", f"{run}-audit"), {}, fine=(0, 1))

    @property
    def record_key(self) -> tuple[str, ...]:
        """Whose record a document is, as typed."""
        key = RECORD_KEYS.get(self.name)
        return () if key is None else ("--record-key", key)


@dataclass(frozen=True)
class Task:
    """A command of an owner, and the folder that it makes. ``fine`` are exit codes without fault.

    ``settings`` are too many to be shown: ``words`` is what people read.
    """

    owner: Owner
    makes: str
    words: tuple[str, ...]
    settings: dict[str, str]
    fine: tuple[int, ...] = (0,)

    @property
    def title(self) -> str:
        """What the bar says."""
        return self.owner.name if self.makes == "run" else f"{self.owner.name} {self.makes}"

    @property
    def log(self) -> Path:
        """What it says while it works."""
        return self.owner.house / f"{self.makes}.log"

    @property
    def num_steps(self) -> float:
        """Steps of a training; one where nothing is trained."""
        windows = int(self.settings.get("batch.windows", 16))
        step = windows * int(self.settings.get("data.window_tokens", 1))
        return int(self.settings.get("budget.tokens", step)) / step


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


def do_all(tasks: list[Task], screen: Console) -> None:
    """Does every task, as many at once as there are cores, one thread each.

    Raises:
        StateError: a task failed; its own words are in the error.
    """
    waiting, running = list(tasks), list[tuple[Task, subprocess.Popen[str]]]()
    width = max(len(task.title) for task in tasks)
    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, TimeElapsedColumn(), console=screen) as bar:
        rows = {
            t.title: bar.add_task(t.title.ljust(width), total=1.0, state="waits") for t in tasks
        }
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    running.append((waiting[0], _start(waiting.pop(0))))
                time.sleep(_POLL_SECONDS)
                for task, process in list(running):
                    if process.poll() is not None:
                        running.remove((task, process))
                        _check(task, process)
                        bar.update(rows[task.title], completed=1.0, state="done")
                    else:
                        bar.update(rows[task.title], **_state(task))  # type: ignore[arg-type]
        finally:
            for _, process in running:
                process.terminate()


def _start(task: Task) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "moiety", *task.words]
    for name, value in task.settings.items():
        words += ["--set", f"{name}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with task.log.open("w") as log:
        return subprocess.Popen(
            words, cwd=task.owner.house, env=environment, stdout=log, stderr=log, text=True
        )


def _check(task: Task, process: subprocess.Popen[str]) -> None:
    if process.returncode not in task.fine:
        words = task.log.read_text(errors="replace")[-600:]
        raise StateError(f"{task.title} failed: {words}", where=task.log)


def _state(task: Task) -> dict[str, object]:
    """How far a task is, from its own log (its last whole line)."""
    if not task.settings:
        return {"state": "attacks"}
    path = task.owner.house / task.makes / "logs" / "train.jsonl"
    if not path.exists():
        return {"state": "reads its text"}
    for line in reversed(path.read_text().splitlines()):
        try:
            entry = json.loads(line)
            done, loss = entry["step"] / task.num_steps, entry["loss"]
        except (ValueError, KeyError):
            continue
        return {"completed": min(done, 1.0), "state": f"trains, loss {loss:.2f}"}
    return {"state": "begins"}

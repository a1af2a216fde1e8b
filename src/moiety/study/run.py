"""Pieces done side by side, each in a process of its own, until every score stands."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moiety.errors import StateError
from moiety.files import write_atomic
from moiety.study.pieces import Piece, all_pieces, unfinished
from moiety.study.places import Study
from moiety.study.plan import check_texts

Watcher = Callable[[str, int, int], None]
"""Is told what is under way, how many pieces are done, and how many there are."""

_LOOK_SECONDS = 0.1
_LOG_TAIL_BYTES = 4096


def carry_out(study: Study, watch: Watcher | None = None) -> None:
    """Does all that is not done yet. What fails holds up only what needs it.

    Raises:
        DataError: a text of the study is not there.
        StateError: the folder holds another study, one is at work there, or a piece failed.
        KeyboardInterrupt: asked to stop; the same command goes on.
    """
    check_texts(study.plan)
    pieces = all_pieces(study)
    with _locked(study.out):
        _check_same(study)
        todo = unfinished(pieces)
        crew = _Crew(study, len(pieces), len(pieces) - len(todo), watch)
        with _stopping(crew):
            crew.work(todo)
        if crew.failed:
            name, said = next(iter(crew.failed.items()))
            raise StateError(
                f"{len(crew.failed)} of {len(todo)} pieces failed, the first: {said}",
                where=crew.log(name),
                remedy="mend it and give the same command again; what is done stays done",
            )


def num_jobs(study: Study) -> int:
    """Pieces side by side: as the plan says, else one a core, and two where they share a GPU."""
    cores = len(os.sched_getaffinity(0))
    shared = study.plan.config.compute.device != "cpu" and torch.cuda.is_available()
    return study.plan.paper.jobs or (2 if shared else cores)


@dataclass
class _Crew:
    """The processes at work, and what has come of those before."""

    study: Study
    total: int
    done: int
    watch: Watcher | None
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def work(self, todo: list[Piece]) -> None:
        """Until nothing is left that could be begun."""
        waiting = {piece.name: piece for piece in todo}
        jobs = num_jobs(self.study)
        while True:
            for name in list(waiting):
                blocked = {*waiting, *self.running, *self.failed}
                if len(self.running) < jobs and not blocked & set(waiting[name].needs):
                    self._begin(waiting.pop(name), jobs)
            if not self.running:
                return
            time.sleep(_LOOK_SECONDS)
            for name in list(self.running):
                self._look(name)

    def stop(self) -> None:
        """Asks all to stop, which save what they can, and waits for them."""
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            process.wait()

    def log(self, name: str) -> Path:
        """What a piece said."""
        return self.study.out / "logs" / f"{name.replace('/', '.')}.log"

    def _begin(self, piece: Piece, jobs: int) -> None:
        cores = len(os.sched_getaffinity(0))
        threads = str(cores if piece.alone else max(1, cores // jobs))
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        self.log(piece.name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(piece.name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "moiety.study.worker", str(self.study.out), piece.name],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict.fromkeys(names, threads)},
                # Ctrl-C reaches us alone, and we ask once: twice would stop them hard.
                process_group=0,
            )
        assert process.stdin is not None
        process.stdin.write(self.study.plan.to_json())
        process.stdin.close()
        self.running[piece.name] = process, time.monotonic()
        self._tell()

    def _look(self, name: str) -> None:
        process, begun = self.running[name]
        code = process.poll()
        if code is None:
            return
        del self.running[name]
        if code:
            self.failed[name] = f"{name}: {_last_line(self.log(name))}"
        else:
            self.done += 1
            _note(self.study, {"piece": name, "seconds": round(time.monotonic() - begun, 1)})
        self._tell()

    def _tell(self) -> None:
        if self.watch is not None:
            self.watch(", ".join(self.running), self.done, self.total)


def seconds_spent(study: Study) -> float:
    """Seconds of all pieces of the study that are done, each counted as often as it was done."""
    path = study.out / "pieces.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return round(sum(float(json.loads(line)["seconds"]) for line in lines), 1)


def _note(study: Study, entry: dict[str, Any]) -> None:
    with (study.out / "pieces.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, sort_keys=True) + "\n")


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _check_same(study: Study) -> None:
    """One folder, one study: only methods, seeds, numbers of experts and jobs may differ."""
    path, identity = study.out / "study.json", study.plan.identity()
    if not path.exists():
        write_atomic(path, identity)
    elif path.read_bytes() != identity:
        raise StateError(
            "another study lies here, or this one was changed since",
            where=study.out,
            remedy="name another folder with --out",
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateError("a study is at work here", where=folder) from error
        yield


@contextmanager
def _stopping(crew: _Crew) -> Iterator[None]:
    """Until the block ends SIGTERM stops as Ctrl-C does, and nobody is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("what is done is kept; the same command goes on") from error
    finally:
        crew.stop()
        signal.signal(signal.SIGTERM, before)

"""Pieces done side by side, in processes of their own, until every score stands."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from moiety.errors import StateError
from moiety.files import write_atomic
from moiety.stopping import interruptible
from moiety.study.pieces import Piece, all_pieces, unfinished
from moiety.study.places import Study
from moiety.study.plan import check_texts

Watcher = Callable[[str, int, int], None]
"""Is told what is under way, how many pieces are done, and how many there are."""

LONG_SECONDS = 60.0
"""After a piece that took longer its worker leaves: the memory it held is worth a new start."""

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
                where=study.log(name),
                remedy="mend it and give the same command again; what is done stays done",
            )


def num_jobs(study: Study) -> int:
    """Pieces side by side: as the plan says, else one a core, and two where they share a GPU."""
    cores = len(os.sched_getaffinity(0))
    shared = study.plan.config.compute.device != "cpu" and torch.cuda.is_available()
    return study.plan.paper.jobs or (2 if shared else cores)


@dataclass
class _Worker:
    """A process that does one piece after another, and the piece it is at."""

    process: subprocess.Popen[str]
    lasting: bool
    piece: str = ""
    begun: float = 0.0

    def begin(self, piece: str) -> None:
        """Tells it what is next."""
        assert self.process.stdin is not None
        self.piece, self.begun = piece, time.monotonic()
        self.process.stdin.write(f"{piece}\n")
        self.process.stdin.flush()

    @property
    def answers(self) -> IO[str]:
        """Where it says that it is done; at its end, if it is no more."""
        assert self.process.stdout is not None
        return self.process.stdout

    def leave(self) -> None:
        """Asks it to stop; what it is at is saved if it can be."""
        assert self.process.stdin is not None
        self.process.terminate()
        self.process.wait()
        self.answers.close()
        with suppress(OSError):
            self.process.stdin.close()


@dataclass
class _Crew:
    """The workers, and what has come of their pieces."""

    study: Study
    total: int
    done: int
    watch: Watcher | None
    idle: list[_Worker] = field(default_factory=list)
    busy: list[_Worker] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def work(self, todo: list[Piece]) -> None:
        """Until nothing is left that could be begun."""
        waiting = {piece.name: piece for piece in todo}
        jobs = num_jobs(self.study)
        while True:
            for name in list(waiting):
                under_way = [worker.piece for worker in self.busy]
                blocked = {*waiting, *under_way, *self.failed}
                if len(self.busy) < jobs and not blocked & set(waiting[name].needs):
                    self._begin(waiting.pop(name), jobs)
            if not self.busy:
                return
            by_pipe = {worker.answers.fileno(): worker for worker in self.busy}
            ready, _, _ = select.select(list(by_pipe), [], [])
            for pipe in ready:
                self._end(by_pipe[pipe])

    def leave(self) -> None:
        """Nobody is left behind."""
        for worker in [*self.idle, *self.busy]:
            worker.process.terminate()
        for worker in [*self.idle, *self.busy]:
            worker.leave()

    def _begin(self, piece: Piece, jobs: int) -> None:
        cores = len(os.sched_getaffinity(0))
        if piece.alone:
            worker = self._hire(cores, lasting=False)
        else:
            worker = self.idle.pop() if self.idle else self._hire(max(1, cores // jobs))
        worker.begin(piece.name)
        self.busy.append(worker)
        self._tell()

    def _hire(self, threads: int, *, lasting: bool = True) -> _Worker:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        process = subprocess.Popen(
            [sys.executable, "-m", "moiety.study.worker", str(self.study.out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(names, str(threads))},
            # Ctrl-C reaches us alone, and we ask once: twice would stop them hard.
            process_group=0,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(self.study.plan.to_json().decode())
        process.stdin.flush()
        return _Worker(process, lasting)

    def _end(self, worker: _Worker) -> None:
        self.busy.remove(worker)
        name, answer = worker.piece, worker.answers.readline().strip()
        if answer == "0":
            self.done += 1
            _note(self.study, {"piece": name, "seconds": round(time.monotonic() - worker.begun, 1)})
        else:
            self.failed[name] = f"{name}: {_last_line(self.study.log(name))}"
        if answer and worker.lasting and time.monotonic() - worker.begun < LONG_SECONDS:
            self.idle.append(worker)
        else:
            worker.leave()
        self._tell()

    def _tell(self) -> None:
        if self.watch is not None:
            self.watch(", ".join(worker.piece for worker in self.busy), self.done, self.total)


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
    with interruptible():
        try:
            yield
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("what is done is kept; the same command goes on") from error
        finally:
            crew.leave()

"""The engine of this package: requests of many at once on one release, in a thread of its own.

Whoever submits, cancels or removes does so from any thread; between two steps the engine's thread
takes up what was asked. Nothing but that thread touches the model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from moiety.errors import StateError
from moiety.model import Mixture
from moiety.serve.admission import (
    CANCELLED,
    CLOSED,
    DIED,
    ENDED,
    FAILED,
    FAILING,
    WITHDRAWN,
    Limits,
    check_job,
    check_present,
    check_removal,
)
from moiety.serve.answers import Answer
from moiety.serve.jobs import Ending, Job, Load
from moiety.serve.stepping import Stepper
from moiety.serve.waiting import WaitingRoom

LOG = logging.getLogger(__name__)

FAILURES = 3
"""Steps in a row of which nobody got anything: one text may be too much, but not each."""

TRY_SECONDS = 5.0
TRY = Job((0,), (0,), "", 1, 0.0, 1.0, None, frozenset(), 0)
"""A token of the anchor's, to see whether the model works again."""


@dataclass(eq=False)
class _Removal:
    slots: frozenset[int]
    done: threading.Event = field(default_factory=threading.Event)


class LocalEngine:
    """Runs jobs on a mixture, which it takes over: its weights move, it is of no further use."""

    def __init__(self, mixture: Mixture, limits: Limits | None = None) -> None:
        self._limits = limits = limits or Limits()
        self.names = tuple(mixture.names)
        self.max_context = int(mixture.backbone.config.max_position_embeddings)
        self.most_jobs = limits.jobs
        self._vocabulary = int(mixture.backbone.config.vocab_size)
        with torch.inference_mode():
            self._stepper = Stepper(
                mixture,
                places=limits.places,
                positions=self.max_context,
                step_tokens=limits.step_tokens,
                cache_bytes=limits.cache_bytes,
            )
        self._change = threading.Condition()
        self._waiting = WaitingRoom(limits.waiting)
        self._cancelled: set[Answer] = set()
        self._removals: list[_Removal] = []
        self._gone: frozenset[int] = frozenset()
        self._closed = self._died = False
        self._tried = -TRY_SECONDS
        self._thread = threading.Thread(target=self._run, name="moiety-engine", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why no job can be taken; None when jobs are."""
        if self._closed:
            return DIED.words if self._died else ENDED
        return FAILING if self._stepper.failures >= FAILURES else None

    def submit(self, job: Job) -> Answer:
        """Takes a job. Raises before any work.

        Raises:
            Overloaded: as many wait as may.
            ConfigError: too long, an unknown or a removed slot, a setting out of its range.
            StateError: the engine is closed, or has a problem.
        """
        check_job(job, self.names, self._vocabulary, self.max_context)
        answer = Answer(self._cancel)
        with self._change:
            if self.problem is not None:
                raise StateError(self.problem)
            check_present(job, self._gone, self.names)
            running = len(self._stepper.board.rows)
            self._waiting.let_in(job, answer, running=running, places=self._limits.places)
            self._change.notify()
        return answer

    def remove(self, slots: Iterable[int]) -> None:
        """Withdraws experts: from when this returns, none of them is touched again.

        Raises:
            ConfigError: a slot that does not exist, or the anchor's.
        """
        removal = _Removal(frozenset(slots))
        check_removal(removal.slots, self.names)
        with self._change:
            self._gone |= removal.slots
            self._removals.append(removal)
            self._change.notify()
        while not removal.done.wait(timeout=1):
            if not self._thread.is_alive():
                self._carry_out([removal])

    def load(self) -> Load:
        """How busy the engine is now."""
        stepper = self._stepper
        return Load(
            running=len(stepper.board.rows),
            waiting=len(self._waiting),
            capacity=self._limits.places,
            cached_tokens=stepper.cached,
            generated_tokens=stepper.made,
        )

    def close(self) -> None:
        """Ends every job and the engine's thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _cancel(self, answer: Answer) -> None:
        with self._change:
            if not self._closed:
                self._cancelled.add(answer)
                self._change.notify()

    def _run(self) -> None:
        ending = CLOSED
        try:
            with torch.inference_mode():
                while self._take_up():
                    self._step()
        except Exception:
            LOG.exception("the engine has died")
            ending = DIED
        finally:
            # Whatever state the rest is in: no reader is left waiting.
            with self._change:
                self._closed, self._died = True, ending is DIED
                rows, waiting = self._stepper.board.rows, self._waiting.take(lambda *_: True)
                left = [row.answer for row in rows] + [answer for _, answer in waiting]
                rows.clear()
            for answer in left:
                answer.give([ending])

    def _step(self) -> None:
        ended = self._stepper.step()
        now = time.monotonic()
        with self._change:
            for row in ended:
                self._waiting.ended(now - row.begun)

    def _take_up(self) -> bool:
        """Waits for work and takes up what was asked; false when the engine is to end."""
        board, due = self._stepper.board, False
        with self._change:
            while not (due or self._closed or self._waiting or board.rows or self._removals):
                self._cancelled.clear()
                due = not self._change.wait(self._pause())
            if self._closed:
                return False
            cancelled, self._cancelled = self._cancelled, set()
            removals, self._removals = self._removals, []
            stale = self._drop_waiting(cancelled) if cancelled or removals else []
        for answer, ending in stale:
            answer.give([ending])
        if cancelled:
            self._stepper.leaving(lambda row: row.answer in cancelled, CANCELLED)
        self._carry_out(removals)
        if due:
            self._tried = time.monotonic()
            self._enter(TRY, Answer(self._cancel))
        self._admit()
        return True

    def _pause(self) -> float | None:
        """Seconds until a model that fails is tried again; None where it works."""
        if self._stepper.failures < FAILURES:
            return None
        return max(0.0, self._tried + TRY_SECONDS - time.monotonic())

    def _admit(self) -> None:
        while len(self._stepper.board.rows) < self._limits.places:
            running = Counter(row.job.tenant for row in self._stepper.board.rows)
            with self._change:
                entry = self._waiting.next(running)
            if entry is None:
                return
            self._enter(*entry)

    def _enter(self, job: Job, answer: Answer) -> None:
        try:
            self._stepper.enter(job, answer)
        except Exception:
            LOG.exception("a request could not be begun")
            self._stepper.failures += 1
            answer.give([FAILED])

    def _drop_waiting(self, cancelled: set[Answer]) -> list[tuple[Answer, Ending]]:
        """Takes out of the queue who has hung up, or names a removed expert."""
        stale = self._waiting.take(
            lambda job, answer: answer in cancelled or not self._gone.isdisjoint(job.slots)
        )
        return [(answer, CANCELLED if answer in cancelled else WITHDRAWN) for _, answer in stale]

    def _carry_out(self, removals: list[_Removal]) -> None:
        for removal in removals:
            self._stepper.remove(removal.slots, WITHDRAWN)
            removal.done.set()

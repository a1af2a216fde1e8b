"""The engine that lets vLLM compute: a plain checkpoint, in a process of its own.

A *generation* is a checkpoint of some of the release's experts and the process that runs it. When
an expert leaves, the next generation is made without it; requests go to the newest, and an older
one ends with its last request. Weights are never exchanged in a running process.

vLLM is told token ids, slots, and a salt for its cache of beginnings that says tenant and slots.
What it tells of routing is not needed: evidence depends on tokens alone and is followed here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from moiety.errors import StateError
from moiety.files import canonical_json, digest_bytes
from moiety.merge import exporting
from moiety.serve.admission import (
    CANCELLED,
    CLOSED,
    ENDED,
    FAILED,
    WITHDRAWN,
    Limits,
    check_job,
    check_present,
    check_removal,
)
from moiety.serve.answers import Answer
from moiety.serve.following import Followed, Follower
from moiety.serve.generations import Generation, Maker
from moiety.serve.jobs import Ending, Job, Load, Step
from moiety.serve.process import Message
from moiety.serve.sizes import Sizes
from moiety.serve.waiting import WaitingRoom

LOG = logging.getLogger(__name__)

TRIES = 3
"""So many times within ``TRIES_SECONDS`` a process is started again; then somebody must look."""

TRIES_SECONDS = 600.0
PAUSE_SECONDS = 1.0
WITHDRAW_SECONDS = 30.0
"""A process that does not confirm a withdrawal in time is ended: so it touches nothing either."""

COLDEST, SEEDS = 0.01, 2**63
STARTING = "vLLM's process has ended, and is being started anew"


@dataclass(eq=False)
class _Running:
    """A job in vLLM's hands. ``told``: its reader has had an ending."""

    number: int
    job: Job
    answer: Answer
    generation: Generation
    followed: Followed
    begun: float
    told: bool = False


@dataclass
class _State:
    """What threads share, under one lock."""

    current: Generation | None = None
    opening: Generation | None = None
    retired: list[Generation] = field(default_factory=list)
    running: dict[int, _Running] = field(default_factory=dict)
    marks: dict[int, tuple[Generation, threading.Event]] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    problem: str | None = None
    given_up: bool = False
    closed: bool = False


class VllmEngine:
    """Runs jobs on a release through vLLM.

    Raises:
        TrustError: the release does not hold together.
        ConfigError: no vLLM at ``python``, or not the one that was tested; sizes that do not fit.
        StateError: it did not come up.
    """

    def __init__(self, release: Path, python: Path, sizes: Sizes | None = None) -> None:
        sizes = sizes or Sizes()
        self._maker = Maker(release, python, sizes)
        self.names = self._maker.names
        self.max_context = self._maker.max_context
        self._limits = Limits(places=sizes.max_num_seqs)
        self.most_jobs = self._limits.jobs
        self._waiting = WaitingRoom(self._limits.waiting)
        self._change = threading.Condition()
        self._state = _State()
        self._numbers = count(1)
        self._made = 0
        self._ends: deque[float] = deque(maxlen=TRIES + 1)
        try:
            self._follower = Follower(exporting.load_routing(release))
            self._state.current = self._begin(tuple(range(len(self.names))))
        except BaseException:
            self._maker.close()
            raise
        self._thread = threading.Thread(target=self._supervise, name="moiety-vllm", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why no job can be taken now; None when jobs are."""
        return ENDED if self._state.closed else self._state.problem

    def submit(self, job: Job) -> Answer:
        """Takes a job. Raises before any work.

        Raises:
            Overloaded: as many wait as may.
            ConfigError: too long, an unknown or a removed slot, a setting out of its range.
            StateError: the engine is closed, or vLLM is being started anew.
        """
        check_job(job, self.names, self._maker.vocabulary, self.max_context)
        answer = Answer(self._cancel)
        with self._change:
            state = self._state
            check_present(job, state.gone, self.names)
            if self.problem is not None or state.current is None:
                raise StateError(self.problem or STARTING)
            running = len(state.running)
            self._waiting.let_in(job, answer, running=running, places=self._limits.places)
            self._admit()
        return answer

    def _admit(self) -> None:
        """Hands jobs that wait to vLLM, as many as there are places; the lock is held."""
        state = self._state
        generation = state.current
        while generation is not None and not generation.over:
            if len(state.running) >= self._limits.places:
                return
            entry = self._waiting.next(Counter(one.job.tenant for one in state.running.values()))
            if entry is None:
                return
            (job, answer), number = entry, next(self._numbers)
            followed = Followed(job.prompt, job.slots)
            now = time.monotonic()
            state.running[number] = _Running(number, job, answer, generation, followed, now)
            generation.jobs += 1
            generation.send(_asked(number, job, generation.slots))

    def remove(self, slots: Iterable[int]) -> None:
        """Withdraws experts: from when this returns, none of them is touched again.

        Requests that use one have ended, and every process has confirmed that its steps leave it
        out. The next generation, which never had it, is made in the background.

        Raises:
            ConfigError: a slot that does not exist, or the anchor's.
        """
        removed = frozenset(slots)
        check_removal(removed, self.names)
        with self._change:
            state = self._state
            state.gone, state.given_up = state.gone | removed, False
            waiting = self._waiting.take(lambda job, _: not removed.isdisjoint(job.slots))
            ended = [answer for _, answer in waiting]
            for running in state.running.values():
                if removed & set(running.job.slots) and not running.told:
                    running.told = True
                    ended.append(running.answer)
            waits = [(one, *self._ask_out(one, removed)) for one in self._living()]
            self._change.notify_all()
        for answer in ended:
            answer.give([WITHDRAWN])
        for generation, number, confirmed in waits:
            if not confirmed.wait(WITHDRAW_SECONDS) and generation.process is not None:
                LOG.error("vLLM's process did not confirm a withdrawal: it is ended")
                generation.process.end()
            self._state.marks.pop(number, None)
        self._follower.forget(removed)

    def load(self) -> Load:
        """How busy the engine is now. What vLLM has cached is not known here."""
        running, waiting = len(self._state.running), len(self._waiting)
        return Load(running, waiting, self._limits.places, 0, self._made)

    def close(self) -> None:
        """Ends every job, every process and the engine's thread; removes what was written."""
        with self._change:
            state = self._state
            state.closed = True
            generations = self._living() + ([state.opening] if state.opening else [])
            left = [one.answer for one in state.running.values() if not one.told]
            left += [answer for _, answer in self._waiting.take(lambda *_: True)]
            state.running.clear()
            self._change.notify_all()
        for answer in left:
            answer.give([CLOSED])
        for generation in generations:
            self._maker.end(generation)
        self._thread.join()
        self._maker.close()

    def _living(self) -> list[Generation]:
        state = self._state
        found = [*state.retired, *([state.current] if state.current else [])]
        return [one for one in found if not one.over]

    def _ask_out(
        self, generation: Generation, slots: frozenset[int]
    ) -> tuple[int, threading.Event]:
        """Asks a process to leave experts out; the event is set when it does."""
        number, event = next(self._numbers), threading.Event()
        self._state.marks[number] = (generation, event)
        places = [place for place, slot in enumerate(generation.slots) if slot in slots]
        generation.send({"do": "withdraw", "slots": places, "mark": number})
        return number, event

    def _cancel(self, answer: Answer) -> None:
        with self._change:
            waited = self._waiting.take(lambda _, one: one is answer)
            for running in self._state.running.values():
                if running.answer is answer and not running.told:
                    running.generation.send({"do": "abort", "id": running.number})
        if waited:
            answer.give([CANCELLED])

    def _hear(self, generation: Generation, message: Message | None) -> None:
        """What a process says, in the thread that reads it."""
        if message is None:
            self._lost(generation)
        elif message.get("is") == "withdrawn":
            _, event = self._state.marks.get(message["mark"], (None, None))
            if event is not None:
                event.set()
        elif message.get("is") == "steps":
            self._take(message["rows"])

    def _take(self, rows: list[Any]) -> None:
        """Hands steps and endings over to who reads them."""
        with self._change:
            found = [(self._state.running.get(row[0]), row[1], row[2]) for row in rows]
        mine = [(one, steps, reason) for one, steps, reason in found if one is not None]
        shares = self._follower.follow([(one.followed, steps) for one, steps, _ in mine])
        for (running, steps, reason), weights in zip(mine, shares, strict=True):
            items: list[Step | Ending] = [
                Step(token, logprob, tuple((t, p) for t, p in top), share, prompt)
                for (token, logprob, top, prompt), share in zip(steps, weights, strict=True)
            ]
            self._made += sum(not step[3] for step in steps)
            if reason is not None:
                items.append(_ending(reason))
                self._leave(running)
            if items and not running.told:
                running.told = reason is not None
                running.answer.give(items)

    def _leave(self, running: _Running) -> None:
        """vLLM has let go of a job: its place is free."""
        with self._change:
            self._state.running.pop(running.number, None)
            running.generation.jobs -= 1
            self._waiting.ended(time.monotonic() - running.begun)
            self._admit()
            self._change.notify_all()

    def _lost(self, generation: Generation) -> None:
        """A process has ended: so have its jobs."""
        assert generation.process is not None or not generation.jobs
        why = generation.process.why_ended if generation.process else ""
        with self._change:
            state = self._state
            generation.over = True
            mine = [one for one in state.running.values() if one.generation is generation]
            for one in mine:
                del state.running[one.number]
            left = [one.answer for one in mine if not one.told]
            generation.jobs = 0
            if generation is not state.current:
                self._admit()
            elif not state.closed:
                left += [answer for _, answer in self._waiting.take(lambda *_: True)]
                state.problem, state.given_up = f"{STARTING}: {why}", False
                self._ends.append(time.monotonic())
            for asked, event in state.marks.values():
                if asked is generation:
                    event.set()
            self._change.notify_all()
        ending = CLOSED if self._state.closed else Ending("failed", f"vLLM has ended: {why}")
        for answer in left:
            answer.give([ending])

    def _supervise(self) -> None:
        """Ends generations that nobody uses any more, and makes the next."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._state.closed or self._to_do())
                if self._state.closed:
                    return
                idle = [one for one in self._state.retired if one.over or not one.jobs]
                self._state.retired = [one for one in self._state.retired if one not in idle]
            for generation in idle:
                self._maker.end(generation)
            if self._stale():
                self._renew()

    def _to_do(self) -> bool:
        return self._stale() or any(one.over or not one.jobs for one in self._state.retired)

    def _stale(self) -> bool:
        state = self._state
        if state.given_up:
            return False
        current = state.current
        return current is None or current.over or bool(state.gone & set(current.slots))

    def _renew(self) -> None:
        """The next generation, and the switch to it."""
        slots = tuple(slot for slot in range(len(self.names)) if slot not in self._state.gone)
        try:
            if self._ends_often():
                raise StateError(f"vLLM's process has ended {TRIES + 1} times")
            generation = self._begin(slots)
        except Exception as error:
            self._not_begun(error)
            return
        with self._change:
            state = self._state
            if state.closed or generation.over or state.gone & set(slots):
                state.retired.append(generation)
            else:
                old, state.current, state.problem = state.current, generation, None
                state.retired += [old] if old is not None else []
        LOG.info("vLLM serves %s now", ", ".join(self.names[slot] for slot in slots))

    def _not_begun(self, error: Exception) -> None:
        with self._change:
            if self._state.closed:
                return
            LOG.error("vLLM cannot be started anew", exc_info=error)
            self._ends.append(time.monotonic())
            self._state.given_up = self._ends_often()
            if self._state.given_up and (self._state.current is None or self._state.current.over):
                self._state.problem = f"vLLM cannot be started anew: {error}"
            # A folder that is being changed holds again in a moment.
            self._change.wait_for(lambda: self._state.closed, timeout=PAUSE_SECONDS)

    def _ends_often(self) -> bool:
        return len(self._ends) > TRIES and self._ends[-1] - self._ends[0] < TRIES_SECONDS

    def _begin(self, slots: tuple[int, ...]) -> Generation:
        """Makes a generation, and waits until it is ready."""
        generation = self._maker.make(slots, self._hear)
        assert generation.process is not None
        with self._change:
            self._state.opening = generation
            closed = self._state.closed
        try:
            if closed:
                raise StateError(ENDED)
            generation.process.open()
        except BaseException:
            self._maker.end(generation)
            raise
        finally:
            self._state.opening = None
        return generation


def _asked(number: int, job: Job, slots: tuple[int, ...]) -> Message:
    """A job in the process's words; its slots are those of the checkpoint."""
    salt = digest_bytes(canonical_json({"slots": list(job.slots), "tenant": job.tenant}))
    warm = job.temperature > 0
    return {
        "do": "run",
        "id": number,
        "prompt": list(job.prompt),
        "slots": [slots.index(slot) for slot in job.slots],
        "salt": salt,
        "max_tokens": job.max_tokens,
        # vLLM takes less than this for it, and says so each time.
        "temperature": max(job.temperature, COLDEST) if warm else 0.0,
        "top_p": job.top_p,
        # It takes -1 for none.
        "seed": None if job.seed is None else job.seed % SEEDS,
        "stop": sorted(job.stop_tokens),
        "top": job.top_logprobs,
        "scored": job.prompt_logprobs,
    }


def _ending(reason: str) -> Ending:
    if reason == "stop":
        return Ending("stop")
    if reason == "length":
        return Ending("length")
    return CANCELLED if reason in ("cancelled", "abort") else FAILED

"""The engine that lets vLLM compute: a plain checkpoint, in a process of its own.

A *generation* is a checkpoint of some of the release's experts and the process that runs it. When
an expert leaves, the next generation is made without it; requests go to the newest, and an older
one ends with its last request. Weights are never exchanged in a running process.

vLLM is told token ids, slots, and a salt for its cache of beginnings that says tenant and slots.
What it tells of routing is not needed: evidence depends on tokens alone and is followed here.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from moiety.bundle import papers
from moiety.errors import ConfigError, IntegrityError, StateError
from moiety.files import canonical_json, digest_bytes, parse_json, read_limited
from moiety.merge import exporting, open_release
from moiety.serve.admission import (
    CANCELLED,
    CLOSED,
    FAILED,
    WITHDRAWN,
    Limits,
    check_job,
    check_removal,
)
from moiety.serve.answers import Answer
from moiety.serve.following import Followed, Follower
from moiety.serve.jobs import Ending, Job, Load, Overloaded, Step
from moiety.serve.process import Message, Process, Start
from moiety.serve.sizes import Sizes

LOG = logging.getLogger(__name__)

TRIES = 3
"""So many times within ``TRIES_SECONDS`` a process is started again; then somebody must look."""

TRIES_SECONDS = 600.0
PAUSE_SECONDS = 1.0
WITHDRAW_SECONDS = 30.0
"""A process that does not confirm a withdrawal in time is ended: so it touches nothing either."""

COLDEST, SEEDS = 0.01, 2**63
ENDED = "the engine is closed"
STARTING = "vLLM's process has ended, and is being started anew"


@dataclass(eq=False)
class Generation:
    """A checkpoint of the experts in ``slots`` and who runs it; ``over``: that has ended."""

    slots: tuple[int, ...]
    folder: Path
    process: Process | None = None
    over: bool = False
    jobs: int = 0

    def send(self, message: Message) -> None:
        """Tells its process something."""
        if self.process is not None:
            self.process.send(message)


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
        self._release = open_release(Path(release))
        self._sizes = sizes = sizes or Sizes()
        self._python = Path(python).absolute()
        self._limits = Limits(places=sizes.max_num_seqs)
        self.names = tuple(self._release.names)
        self._vocabulary = self._release.roster.vocab
        self._follower = Follower(exporting.load_routing(release))
        self.max_context = _context(self._release.folder, sizes)
        self._change = threading.Condition()
        self._state = _State()
        self._numbers = count(1)
        self._made = 0
        self._job_seconds = 1.0
        self._ends: deque[float] = deque(maxlen=TRIES + 1)
        # Private to this user; what a crash leaves here is for the system's cleaning of its
        # temporary folder.
        self._folder = Path(tempfile.mkdtemp(prefix="moiety-vllm-"))
        try:
            self._state.current = self._begin(tuple(range(len(self.names))))
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
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
        check_job(job, self.names, self._vocabulary, self.max_context)
        answer = Answer(self._cancel)
        with self._change:
            state = self._state
            gone = state.gone & set(job.slots)
            if gone:
                raise ConfigError(f"withdrawn: {self.names[min(gone)]}")
            if self.problem is not None or state.current is None:
                raise StateError(self.problem or STARTING)
            waiting = len(state.running) - self._limits.places
            if waiting >= self._limits.waiting:
                raise Overloaded(self._limits.retry_seconds(waiting, self._job_seconds))
            number, generation = next(self._numbers), state.current
            followed = Followed(job.prompt, job.slots)
            now = time.monotonic()
            running = _Running(number, job, answer, generation, followed, now)
            state.running[number] = running
            generation.jobs += 1
            generation.send(_asked(number, job, generation.slots))
        return answer

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
            used = [one for one in state.running.values() if removed & set(one.job.slots)]
            ended = [one for one in used if not one.told]
            for one in ended:
                one.told = True
            waits = [(one, *self._ask_out(one, removed)) for one in self._living()]
            self._change.notify_all()
        for one in ended:
            one.answer.give([WITHDRAWN])
        for generation, number, confirmed in waits:
            if not confirmed.wait(WITHDRAW_SECONDS) and generation.process is not None:
                LOG.error("vLLM's process did not confirm a withdrawal: it is ended")
                generation.process.end()
            self._state.marks.pop(number, None)
        self._follower.forget(removed)

    def load(self) -> Load:
        """How busy the engine is now. What vLLM has cached is not known here."""
        jobs, places = len(self._state.running), self._limits.places
        return Load(min(jobs, places), max(0, jobs - places), places, 0, self._made)

    def close(self) -> None:
        """Ends every job, every process and the engine's thread; removes what was written."""
        with self._change:
            state = self._state
            state.closed = True
            generations = self._living() + ([state.opening] if state.opening else [])
            left = [one.answer for one in state.running.values() if not one.told]
            state.running.clear()
            self._change.notify_all()
        for answer in left:
            answer.give([CLOSED])
        for generation in generations:
            self._end(generation)
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

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
            for running in self._state.running.values():
                if running.answer is answer and not running.told:
                    running.generation.send({"do": "abort", "id": running.number})

    def _hear(self, generation: Generation, _process: Process, message: Message | None) -> None:
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
            self._job_seconds += 0.1 * (time.monotonic() - running.begun - self._job_seconds)
            self._change.notify_all()

    def _lost(self, generation: Generation) -> None:
        """A process has ended: so have its jobs."""
        assert generation.process is not None or not generation.jobs
        why = generation.process.why_ended if generation.process else ""
        with self._change:
            state = self._state
            generation.over = True
            left = [one for one in state.running.values() if one.generation is generation]
            for one in left:
                del state.running[one.number]
            generation.jobs = 0
            if generation is state.current and not state.closed:
                state.problem, state.given_up = f"{STARTING}: {why}", False
                self._ends.append(time.monotonic())
            for asked, event in state.marks.values():
                if asked is generation:
                    event.set()
            self._change.notify_all()
        ending = CLOSED if self._state.closed else Ending("failed", f"vLLM has ended: {why}")
        for one in left:
            if not one.told:
                one.answer.give([ending])

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
                self._end(generation)
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
            if len(self._ends) > TRIES and self._ends[-1] - self._ends[0] < TRIES_SECONDS:
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
            often = len(self._ends) > TRIES and self._ends[-1] - self._ends[0] < TRIES_SECONDS
            self._state.given_up = often
            if often and (self._state.current is None or self._state.current.over):
                self._state.problem = f"vLLM cannot be started anew: {error}"
            # A folder that is being changed holds again in a moment.
            self._change.wait_for(lambda: self._state.closed, timeout=PAUSE_SECONDS)

    def _begin(self, slots: tuple[int, ...]) -> Generation:
        """Exports the experts in ``slots`` and starts a process on them."""
        folder = Path(tempfile.mkdtemp(prefix="generation-", dir=self._folder))
        generation = Generation(slots, folder)
        try:
            model = folder / "model"
            names = [self.names[slot] for slot in slots]
            devices = self._sizes.tensor_parallel_size
            exporting.export_plain(self._release.folder, model, experts=names, devices=devices)
            self._check_export(model, slots)
            args = self._sizes.args(self.max_context)
            start = Start(self._python, model, len(slots), args, self._folder)
            with self._change:
                if self._state.closed:
                    raise StateError(ENDED)
                generation.process = Process(start, partial(self._hear, generation))
                self._state.opening = generation
            generation.process.open()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._state.opening = None
        return generation

    def _check_export(self, model: Path, slots: tuple[int, ...]) -> None:
        """The folder may have changed since it was opened: what was exported must be the same."""
        paper = papers.read_paper(exporting.ExportPaper, model / exporting.PAPER)
        experts = self._release.roster.experts
        wanted = [(experts[slot].name, experts[slot].bundle) for slot in slots]
        same = self._release.roster.strict and paper.strict
        if [(one.name, one.bundle) for one in paper.experts] != wanted or not (
            same or paper.release == self._release.digest
        ):
            raise IntegrityError("not the experts that are served", where=self._release.folder)

    def _end(self, generation: Generation) -> None:
        if generation.process is not None:
            generation.process.end()
        shutil.rmtree(generation.folder, ignore_errors=True)


def _context(folder: Path, sizes: Sizes) -> int:
    """Tokens of prompt and answer together. Raises ``ConfigError`` for more than the model has."""
    path = folder / "config.json"
    most = int(parse_json(read_limited(path), path)["max_position_embeddings"])
    if (sizes.max_model_len or 0) > most:
        raise ConfigError(f"max_model_len: the model has {most:,} positions")
    return sizes.max_model_len or most


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

"""What an engine is asked and what it answers: token ids in, token ids out.

The contract between the API, which knows keys, texts and policies, and an engine, which knows
tokens and experts. Whoever submits a job has already decided that it may use its slots.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from moiety.errors import MoietyError

TOP_LOGPROBS_MAX = 20
"""Alternatives a step may tell."""

Reason = Literal["stop", "length", "withdrawn", "cancelled", "failed"]


class Overloaded(MoietyError):
    """As many requests wait as may wait; ``retry_seconds`` is when to try again."""

    def __init__(self, retry_seconds: int) -> None:
        super().__init__("too many requests are waiting", remedy=f"try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


@dataclass(frozen=True)
class Job:
    """One sequence to generate.

    ``prompt`` begins with the separator, as a text does everywhere. ``slots`` are the experts it
    may use, ascending, 0 (the anchor) always among them. ``tenant`` says whose cached keys and
    values it may share: derived by the server, never the caller's word. ``temperature`` 0 is
    greedy, ``max_tokens`` 0 only scores the prompt. ``top_logprobs`` is how many alternatives each
    step tells, 0 to ``TOP_LOGPROBS_MAX``; the chosen token's logprob is always told.
    """

    prompt: tuple[int, ...]
    slots: tuple[int, ...]
    tenant: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop_tokens: frozenset[int]
    top_logprobs: int
    prompt_logprobs: bool = False


@dataclass(frozen=True)
class Step:
    """One token of an answer, or, before the first of them and where asked for, of the prompt.

    A stop token ends the answer and is no step.
    ``logprob`` is in nats, of the model's own distribution, before temperature and top-p; ``top``
    the likeliest tokens with theirs. ``weights`` are the router's of each of the job's slots where
    this token was computed. ``prompt`` is true for a token of the prompt: its first token, which
    nothing predicts, is left out.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    weights: tuple[float, ...]
    prompt: bool = False


@dataclass(frozen=True)
class Ending:
    """Why there is no further token; ``words`` tell the caller of a withdrawal or a failure."""

    reason: Reason
    words: str = ""


@dataclass(frozen=True)
class Load:
    """How busy an engine is. ``capacity`` is how many jobs run at once."""

    running: int
    waiting: int
    capacity: int
    cached_tokens: int
    generated_tokens: int


class Stream(Protocol):
    """The answer to one job. Safe to use from any thread; read by one reader."""

    def __aiter__(self) -> AsyncIterator[Step | Ending]:
        """Steps as they come, and an ``Ending`` as the last."""
        ...

    def cancel(self) -> None:
        """The client has hung up: frees the job's place within one step."""
        ...


class Engine(Protocol):
    """Runs jobs, many at once, each as if it were alone."""

    @property
    def names(self) -> tuple[str, ...]:
        """The experts in slot order, the anchor first."""
        ...

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    @property
    def most_jobs(self) -> int:
        """Jobs that run and wait together at most, where nobody else asks."""
        ...

    @property
    def problem(self) -> str | None:
        """Why no job can be taken now, in words for whoever asks; None when jobs are taken."""
        ...

    def submit(self, job: Job) -> Stream:
        """Takes a job. Raises before any work.

        Raises:
            Overloaded: as many wait as may.
            ConfigError: too long, an unknown or a removed slot, a setting out of its range.
            StateError: the engine is closed, or has a problem.
        """
        ...

    def remove(self, slots: Iterable[int]) -> None:
        """Withdraws experts: from when this returns, none of them is touched again.

        Running and waiting jobs that name one end ``withdrawn``, cached keys and values made with
        one are dropped, the weights are freed.
        """
        ...

    def load(self) -> Load:
        """How busy the engine is now."""
        ...

    def close(self) -> None:
        """Ends every job and the engine's thread."""
        ...

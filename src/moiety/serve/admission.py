"""What every engine asks of a job before any work, how many it takes on, and what ends one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moiety.errors import ConfigError
from moiety.serve.jobs import TOP_LOGPROBS_MAX, Ending, Job

WITHDRAWN = Ending("withdrawn", "an expert that this request uses was withdrawn")
CANCELLED = Ending("cancelled")
CLOSED = Ending("failed", "the server is closing")
FAILED = Ending("failed", "the model could not go on with this text")
DIED = Ending(
    "failed", "the engine has died, and the server must be started anew; its log says why"
)
ENDED = "the engine is closed"
FAILING = "the model fails at every text, and is tried again; the server's log says why"


@dataclass(frozen=True)
class Limits:
    """How much an engine takes on.

    ``places`` run at once and ``waiting`` more wait, some more where a tenant needs its part
    (``waiting.py``); a step takes about ``step_tokens`` tokens, and the cache of beginnings holds
    ``cache_bytes`` of keys and values.

    Raises:
        ConfigError: limits of nothing.
    """

    places: int = 16
    waiting: int = 64
    step_tokens: int = 128
    cache_bytes: int = 256 * 1024**2

    def __post_init__(self) -> None:
        if min(self.places, self.step_tokens) < 1 or min(self.waiting, self.cache_bytes) < 0:
            raise ConfigError("an engine needs a place, and a token a step")

    @property
    def jobs(self) -> int:
        """Jobs that run and wait together at most, where there is one tenant."""
        return self.places + self.waiting


def check_job(job: Job, names: Sequence[str], vocabulary: int, max_context: int) -> None:
    """Raises ``ConfigError`` for a job that no engine of this model can run."""
    slots = job.slots
    if tuple(sorted(set(slots))) != slots or not {0} <= set(slots) <= set(range(len(names))):
        raise ConfigError("slots must be the release's, ascending, the anchor's among them")
    if not job.prompt:
        raise ConfigError("the prompt is empty")
    if not 0 <= min(job.prompt) <= max(job.prompt) < vocabulary:
        raise ConfigError("the prompt has tokens that are not in the vocabulary")
    if len(job.prompt) + job.max_tokens > max_context:
        raise ConfigError(
            f"{len(job.prompt)} tokens of prompt and {job.max_tokens} of answer are more than "
            f"the model's {max_context}"
        )
    if not 0 <= job.temperature < math.inf or not 0 < job.top_p <= 1 or job.max_tokens < 0:
        raise ConfigError("temperature must be >= 0, top_p in (0, 1], max tokens >= 0")
    if not 0 <= job.top_logprobs <= TOP_LOGPROBS_MAX:
        raise ConfigError(f"top logprobs must be 0 to {TOP_LOGPROBS_MAX}")


def check_present(job: Job, gone: frozenset[int], names: Sequence[str]) -> None:
    """Raises ``ConfigError`` for a job that names an expert which has left."""
    named = gone & set(job.slots)
    if named:
        raise ConfigError(f"withdrawn: {names[min(named)]}")


def check_removal(slots: frozenset[int], names: Sequence[str]) -> None:
    """Raises ``ConfigError`` for a slot that does not exist, or the anchor's."""
    if not slots <= set(range(1, len(names))):
        raise ConfigError("only experts of the release can be removed, and not the anchor")

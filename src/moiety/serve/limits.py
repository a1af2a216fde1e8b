"""How much a key may ask for: requests and tokens a minute, and requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from moiety.serve.policy import Rights
from moiety.serve.refusals import RefusalError, too_busy

MINUTE = 60.0
BUSY_SECONDS = 1.0


class Bucket:
    """Holds a minute's worth and fills evenly: nobody saves up more than that."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._at = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` is there; 0 when it is."""
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / MINUTE)
        self._at = now
        return max(0.0, (amount - self._left) * MINUTE / self.per_minute)

    def take(self, amount: float) -> None:
        """Takes an amount that was waited for, or (negative) gives some back."""
        self._left = min(self.per_minute, self._left - amount)


@dataclass
class Grant:
    """What one request holds: its place, and the tokens it may use."""

    key: str
    tokens: int = 0


class Limits:
    """What each key has used. Lives in the event loop, so nothing is locked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._running: dict[str, int] = {}

    def look(self, rights: Rights) -> None:
        """A question about what is here: as many a minute as requests, but counted by itself.

        Raises:
            RefusalError: 429, with the seconds to wait.
        """
        self._take("questions", rights.id, rights.requests_per_minute, 1)

    def enter(self, rights: Rights) -> Grant:
        """A place for one request, which counts from now on, whatever becomes of it.

        Raises:
            RefusalError: 429, with the seconds to wait.
        """
        running = self._running.get(rights.id, 0)
        if rights.concurrent is not None and running >= rights.concurrent:
            many = "1 request" if running == 1 else f"{running} requests"
            raise too_busy(
                f"key {rights.id} has {many} running, as many as it may",
                BUSY_SECONDS,
                "concurrency_limit_exceeded",
            )
        self._take("requests", rights.id, rights.requests_per_minute, 1)
        self._running[rights.id] = running + 1
        return Grant(rights.id)

    def take(self, grant: Grant, rights: Rights, tokens: int) -> None:
        """The tokens that a request with a place may use.

        Raises:
            RefusalError: 429, with the seconds to wait; 400 for more tokens than a minute has.
        """
        if rights.tokens_per_minute is not None and tokens > rights.tokens_per_minute:
            raise RefusalError(
                400,
                f"may use up to {tokens:,} tokens, and key {rights.id} has "
                f"{rights.tokens_per_minute:,} a minute: ask for fewer with max_tokens or n",
                code="too_many_tokens",
                param="max_tokens",
            )
        self._take("tokens", grant.key, rights.tokens_per_minute, tokens)
        grant.tokens = tokens

    def end(self, grant: Grant, used_tokens: int) -> None:
        """Gives the place back, and the tokens that were not used."""
        self._running[grant.key] -= 1
        bucket = self._buckets.get(("tokens", grant.key))
        if bucket is not None:
            bucket.take(used_tokens - grant.tokens)

    def _take(self, what: str, key: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        now = self._clock()
        bucket = self._buckets.get((what, key))
        if bucket is None or bucket.per_minute != per_minute:
            # A fresh one, too, when a new policy says another number.
            bucket = self._buckets[what, key] = Bucket(per_minute, now)
        seconds = bucket.wait(amount, now)
        if seconds > 0:
            words = f"key {key} has used up its {what} a minute, which are {per_minute:,}"
            raise too_busy(words, seconds, "rate_limit_exceeded")
        bucket.take(amount)

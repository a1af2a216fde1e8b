"""Who waits for a place, whose turn is next, and who may wait when many do: fair between tenants.

Next is the eldest job of whoever has the fewest running, or, of several who have as few, whose
last turn was longest ago. So a tenant that comes with one job does not wait for another's hundred.

While there is room anybody may wait. When there is none, a tenant that waits with less than its
equal part of the room still may, and all others are refused: who fills the room alone shuts out
nobody but itself. Nobody who was let in is sent away for it, so the room may hold more for a while;
T tenants one after another bring it to at most ``size * (1 + 1/2 + ... + 1/T)``.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping

from moiety.serve.answers import Answer
from moiety.serve.jobs import Job, Overloaded

Entry = tuple[Job, Answer]
RETRY_SECONDS_MAX = 60


class WaitingRoom:
    """Jobs that wait, the eldest first. ``size`` is how many may.

    Whoever uses it holds a lock.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: deque[Entry] = deque()
        self._turn = 0
        self._last_turns: dict[str, int] = {}
        self._job_seconds = 1.0

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, tenant: str, free: int) -> bool:
        """Whether a tenant may wait with one more; ``free`` places take as many off at once."""
        if len(self._entries) < self._size + free:
            return True
        held = Counter(job.tenant for job, _ in self._entries)
        return held[tenant] < self._size // len(held.keys() | {tenant})

    def let_in(self, job: Job, answer: Answer, *, running: int, places: int) -> None:
        """Takes a job in, where so many of the places are taken.

        Raises:
            Overloaded: its tenant may not wait with one more; with when to come again.
        """
        if not self.has_room(job.tenant, places - running):
            turns = (len(self._entries) + 1) / places
            raise Overloaded(min(RETRY_SECONDS_MAX, math.ceil(turns * self._job_seconds)))
        self.add(job, answer)

    def add(self, job: Job, answer: Answer) -> None:
        """Takes a job in, whether or not there is room."""
        self._entries.append((job, answer))

    def ended(self, seconds: float) -> None:
        """A job took so long: the latest say most of how long others will wait."""
        self._job_seconds += 0.1 * (seconds - self._job_seconds)

    def next(self, running: Mapping[str, int]) -> Entry | None:
        """Takes out whose turn it is; ``running`` is how many jobs of each tenant run."""
        if not self._entries:
            return None
        found = min(self._entries, key=lambda entry: self._order(entry[0].tenant, running))
        self._entries.remove(found)
        self._turn += 1
        self._last_turns[found[0].tenant] = self._turn
        return found

    def _order(self, tenant: str, running: Mapping[str, int]) -> tuple[int, int]:
        return running.get(tenant, 0), self._last_turns.get(tenant, 0)

    def take(self, wanted: Callable[[Job, Answer], bool]) -> list[Entry]:
        """Takes out all that are wanted."""
        found = [entry for entry in self._entries if wanted(*entry)]
        for entry in found:
            self._entries.remove(entry)
        return found

"""What an operator must be able to show later: one line of a log for each event, and when.

No key, prompt or text is ever in a line. What others wrote is spelled out in printable ASCII, so
that nobody can forge a line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from moiety.bundle import orders, papers

LOG = logging.getLogger("moiety.serve")
TALLY_SECONDS = 1.0


def withdrawn(
    order: orders.VerifiedOrder, before: str, after: str, done: Mapping[str, Any]
) -> None:
    """An owner's order was obeyed; digests are of the roster in answers."""
    place = "in this server only"
    if done["on_disk"]:
        place = f"on disk, receipt {done['receipt']}" if "receipt" in done else "on disk already"
    told = (order.order.owner, order.digest, after, before, papers.harmless(place))
    LOG.info("withdrawn by order: %s; order %s; roster %s, before %s; %s", *told)


def left(names: Sequence[str], before: str, after: str) -> None:
    """Somebody else has withdrawn them from the release's folder."""
    told = ", ".join(names)
    LOG.info("withdrawn in the release's folder: %s; roster %s, before %s", told, after, before)


def order_refused(why: str) -> None:
    """Somebody with the admin's key brought what is no order for this release."""
    LOG.warning("an order was refused: %s", papers.harmless(why))


def policy_read(num_keys: int, num_remarks: int) -> None:
    """A new policy is in force."""
    LOG.info("the policy was read anew; keys: %d, remarks: %d", num_keys, num_remarks)


def policy_refused(why: str) -> None:
    """A new policy does not hold."""
    LOG.warning("the old policy stays: %s", papers.harmless(why))


class Tally:
    """What strangers can do as often as they like: told once a second at most, with a count."""

    def __init__(self, what: str) -> None:
        self._what, self._count, self._told = what, 0, False

    def add(self) -> None:
        """It was done once more. Belongs to an event loop."""
        self._count += 1
        if not self._told:
            self._tell()

    def _tell(self) -> None:
        self._told = self._count > 0
        if self._told:
            LOG.warning("%s: %d", self._what, self._count)
            self._count = 0
            asyncio.get_running_loop().call_later(TALLY_SECONDS, self._tell)

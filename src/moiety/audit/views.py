"""What an adversary may hold, each as a set of slots of one loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moiety.bundle import audits
from moiety.errors import ConfigError
from moiety.model import Mixture


@dataclass(frozen=True)
class Watched:
    """A view: its name, the model, and the slots of it that the adversary holds."""

    name: audits.View
    mixture: Mixture
    slots: tuple[int, ...]

    @contextmanager
    def using(self) -> Iterator[Mixture]:
        """Only this view's slots take part until the block ends; a single slot has weight 1."""
        with self.mixture.routing.using(self.slots):
            yield self.mixture


def views_of(mixture: Mixture, owner: str, *, strict: bool = True) -> tuple[Watched, ...]:
    """The views of a model that concern one owner, the anchor first.

    No two of them have the same slots: where the owner is alone the release is the pair, and what
    its withdrawal leaves is the anchor, so neither is listed. Of a release that is not ``strict``
    no mask shows what a withdrawal leaves, because that brings the untuned tables back.

    Raises:
        ConfigError: nobody of that name in the model, or the anchor's own name.
    """
    if owner == mixture.names[0] or owner not in mixture.names:
        raise ConfigError(
            f"no expert called {owner} in this release",
            remedy=f"there are: {', '.join(mixture.names[1:])}",
        )
    slot = mixture.names.index(owner)
    everybody = tuple(range(len(mixture.names)))
    views = [
        Watched("anchor", mixture, (0,)),
        Watched("expert", mixture, (slot,)),
        Watched("pair", mixture, (0, slot)),
    ]
    if len(everybody) > 2:
        views.append(Watched("release", mixture, everybody))
        left = tuple(other for other in everybody if other != slot)
        views += [Watched("withdrawn", mixture, left)] if strict else []
    return tuple(views)

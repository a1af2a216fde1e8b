"""Model ids that name a set of experts: ``NAME``, ``NAME+medical+law``, ``NAME-medical``.

Gateways drop fields they do not know, and then an exclusion would be lost in silence. A model's
name is what none of them drops.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from moiety.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ANCHOR = "anchor"
LONGEST_OWNER = 63
"""Characters of an owner's name."""


@dataclass(frozen=True)
class Named:
    """The set a model id names: only these, everybody but these, or (both None) no set."""

    only: frozenset[str] | None = None
    without: frozenset[str] | None = None


class UnknownModelError(Exception):
    """An id that names no set of this release's experts, or more than one."""


def check_name(name: str) -> None:
    """Raises ``ConfigError`` for what cannot be a model's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"not a model's name: {name!r}",
            where="--name",
            remedy="use letters, digits, '.', '_' and '-', at most 100, such as --name mixture",
        )


def parse_model(model: str, name: str, experts: Collection[str]) -> Named:
    """The set that ``model`` names; ``experts`` are all that were loaded, withdrawn ones too.

    Raises:
        UnknownModelError: another model's name, an expert nobody knows, one named twice, or an id
            that can be read in two ways.
    """
    if model == name:
        return Named()
    # Nobody is named twice, so what is longer than all names together names no set.
    if len(model) > len(name) + (LONGEST_OWNER + 1) * (len(experts) + 1):
        raise UnknownModelError
    known = set(experts) | {ANCHOR}
    if model.startswith(f"{name}+"):
        named = model[len(name) + 1 :].split("+")
        if not set(named) <= known or len(set(named)) < len(named):
            raise UnknownModelError
        return Named(only=frozenset(named) - {ANCHOR})
    if model.startswith(f"{name}-"):
        readings = _readings(model[len(name) + 1 :], known - {ANCHOR})
        if len(readings) == 1 and len(set(readings[0])) == len(readings[0]):
            return Named(without=frozenset(readings[0]))
    raise UnknownModelError


def _readings(words: str, experts: Collection[str]) -> list[tuple[str, ...]]:
    """At most two ways to read ``words`` as names joined by '-', which names may hold themselves.

    Keeps two readings of each beginning: more would change nothing.
    """
    words += "-"
    found: dict[int, list[tuple[str, ...]]] = {0: [()]}
    for begin in range(len(words)):
        readings, end = found.get(begin), begin
        while readings and (end := words.find("-", end + 1, begin + LONGEST_OWNER + 1)) > 0:
            if (name := words[begin:end]) in experts:
                ways = found.setdefault(end + 1, [])
                ways += [(*one, name) for one in readings[: 2 - len(ways)]]
    return found.get(len(words), [])

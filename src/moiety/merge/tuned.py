"""Tuned releases: tables trained together in place of the owners' own, which are kept.

Nothing else may differ: experts, anchor and whatever is left of a tuned release have the digests of
the release it was made from, or it is not written. ``untune`` gives that release again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moiety.bundle import orders
from moiety.errors import PolicyError, SignatureError, StateError
from moiety.family import ENTRY_MAX
from moiety.files import digest_bytes
from moiety.merge.assemble import TunedTables, assemble, zero_table
from moiety.merge.leftovers import clean_folder
from moiety.merge.release import Release, open_release
from moiety.merge.roster import (
    WHY_NOT_STRICT,
    ProxiesFacts,
    Tuning,
    roster_digest,
)
from moiety.merge.sources import OpenFiles, ground_from_release, member_from_release
from moiety.merge.streaming import Progress
from moiety.tensors import encode

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class TunedSummary:
    """A release that was tuned, or untuned. ``digest`` is its roster's."""

    out: Path
    digest_before: str
    digest: str
    names: list[str]


def check_strict(release: Release) -> None:
    """Raises ``StateError`` when it was tuned already: tuning begins at the owners' own tables."""
    if not release.roster.strict:
        raise StateError(
            "this release was tuned already",
            where=release.folder,
            remedy="go back first with 'moiety untune'",
        )


def check_proxies(
    release: Release, proxies: Sequence[orders.VerifiedProxies]
) -> dict[str, orders.VerifiedProxies]:
    """Proxies by owner. Raises ``TrustError`` unless each is of an owner in this release.

    A signature must be by the key that signed the owner's bundle.
    """
    found: dict[str, orders.VerifiedProxies] = {}
    where = release.folder
    for one in proxies:
        said = one.proxies
        expert = release.expert(said.owner)
        if said.owner in found:
            raise PolicyError(f"two papers with proxies of {said.owner}", where=where)
        if said.anchor != release.roster.anchor:
            raise PolicyError(f"{said.owner}'s proxies are for another anchor", where=where)
        if said.sample_documents != release.anchor.paper.public.documents:
            raise PolicyError(f"{said.owner}'s proxies are of another public sample", where=where)
        if one.key not in (None, expert.key):
            raise SignatureError(
                f"{said.owner}'s proxies are signed by {one.key}, the bundle by {expert.key}",
                where=where,
            )
        found[said.owner] = one
    if not found:
        raise PolicyError("no proxies", where=where, remedy="name a paper of at least one owner")
    return found


def write_tuned(
    release: Path,
    out: Path,
    tables: Array,
    proxies: Sequence[orders.VerifiedProxies],
    *,
    steps: int,
    progress: Progress | None = None,
) -> TunedSummary:
    """Writes a strict release again with other tables; it says ``strict: false``, and why.

    Shapes: ``tables`` [experts, vocabulary] in the order of the slots; the anchor's must be zero.

    Raises:
        TrustError: the release does not hold, or the proxies are not its owners'.
        StateError: the release was tuned before, ``out`` exists, or these are no tables that a
            release can be run with.
    """
    standing = open_release(release)
    check_strict(standing)
    named = check_proxies(standing, proxies)
    shape = (len(standing.names), standing.roster.vocab)
    if tables.shape != shape or not np.abs(tables).max() <= ENTRY_MAX:
        raise StateError("not tables that a release can be run with", where=release)
    evidence = [encode(table, "F32") for table in tables]
    if evidence[0] != zero_table(standing.anchor.paper):
        raise StateError("the anchor's table is not zero", where=release)
    tuning = Tuning(
        reason=WHY_NOT_STRICT,
        steps=steps,
        proxies={
            owner: ProxiesFacts(paper=one.digest, key=one.key) for owner, one in named.items()
        },
        evidence=tuple(map(digest_bytes, evidence)),
    )
    return _write_again(standing, out, TunedTables(tuning, evidence), progress)


def untune(release: Path, out: Path, *, progress: Progress | None = None) -> TunedSummary:
    """The strict release that a tuned one was made from, byte for byte.

    Raises:
        TrustError: the release does not hold.
        StateError: it was never tuned, or ``out`` exists.
    """
    standing = open_release(release)
    if standing.roster.strict:
        raise StateError("this release was never tuned", where=release)
    return _write_again(standing, out, None, progress)


def _write_again(
    standing: Release, out: Path, tuned: TunedTables | None, progress: Progress | None
) -> TunedSummary:
    roster = standing.roster
    with OpenFiles() as files, clean_folder(out) as folder:
        made = assemble(
            folder,
            ground_from_release(standing, files),
            [member_from_release(standing, slot, files) for slot in roster.experts[1:]],
            top_k=roster.top_k,
            tuned=tuned,
            progress=progress,
        )
        if (made.experts, made.shards) != (roster.experts, roster.shards):
            raise StateError("something other than tables changed", where=standing.folder)
    return TunedSummary(Path(out), standing.digest, roster_digest(made), made.names)

"""Tuned releases: tables and rows trained together in place of the owners' own, which are kept.

Nothing else may differ: experts, anchor and whatever is left of a tuned release have the digests of
the release it was made from, or it is not written. ``untune`` gives that release again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moiety.bundle import orders
from moiety.errors import PolicyError, SignatureError, StateError
from moiety.family import ENTRY_MAX, EVIDENCE_TABLE, OLMO2
from moiety.merge import layout
from moiety.merge.assemble import TunedRows, assemble, row_digests
from moiety.merge.leftovers import clean_folder
from moiety.merge.release import Release, open_release
from moiety.merge.roster import (
    WHY_NOT_STRICT,
    ProxiesFacts,
    Roster,
    Tuning,
    roster_digest,
)
from moiety.merge.sources import OpenFiles, ground_from_release, member_from_release
from moiety.merge.streaming import Progress
from moiety.tensors import decode, encode

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class TunedSummary:
    """A release that was tuned, or untuned. ``digest`` is its roster's."""

    out: Path
    digest_before: str
    digest: str
    names: list[str]


def check_strict(release: Release) -> None:
    """Raises ``StateError`` when the rows were tuned already: tuning begins at the owners' own."""
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
    rows: Mapping[str, Array],
    proxies: Sequence[orders.VerifiedProxies],
    *,
    steps: int,
    progress: Progress | None = None,
) -> TunedSummary:
    """Writes a strict release again with other tables and rows; it says ``strict: false``, and why.

    ``rows`` are stacked, by their names in a release; the first of each stack must be zero.

    Raises:
        TrustError: the release does not hold, or the proxies are not its owners'.
        StateError: the release was tuned before, ``out`` exists, or what was given is not tables
            and rows that a release can be run with.
    """
    standing = open_release(release)
    check_strict(standing)
    named = check_proxies(standing, proxies)
    evidence, token = _row_bytes(standing.roster, rows)
    tuning = Tuning(
        reason=WHY_NOT_STRICT,
        steps=steps,
        proxies={
            owner: ProxiesFacts(paper=one.digest, key=one.key) for owner, one in named.items()
        },
        rows=tuple(map(row_digests, evidence, token)),
    )
    return _write_again(standing, out, TunedRows(tuning, evidence, token), progress)


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
    standing: Release, out: Path, tuned: TunedRows | None, progress: Progress | None
) -> TunedSummary:
    roster = standing.roster
    with OpenFiles() as files, clean_folder(out) as folder:
        made = assemble(
            folder,
            ground_from_release(standing, files),
            [member_from_release(standing, slot, files) for slot in roster.experts[1:]],
            top_k=roster.top_k,
            native=roster.native,
            tuned=tuned,
            progress=progress,
        )
        if (made.experts, made.shards) != (roster.experts, roster.shards):
            raise StateError("something other than tables and rows changed", where=standing.folder)
    return TunedSummary(Path(out), standing.digest, roster_digest(made), made.names)


def _row_bytes(roster: Roster, rows: Mapping[str, Array]) -> tuple[list[bytes], list[list[bytes]]]:
    """(tables, token rows), each by slot; rows then by layer."""
    evidence, token = layout.row_shapes(len(roster.experts), roster.width, roster.vocab)
    tables = _stack(rows, EVIDENCE_TABLE, evidence, "F32")
    if np.abs(rows[EVIDENCE_TABLE]).max() > ENTRY_MAX:
        raise StateError("not a table that a release can be run with", where=EVIDENCE_TABLE)
    gates = [OLMO2.gate(layer) for layer in range(roster.num_layers)]
    layers = [_stack(rows, gate, token, roster.dtype) for gate in gates]
    return tables, [list(row) for row in zip(*layers, strict=True)]


def _stack(rows: Mapping[str, Array], name: str, shape: tuple[int, int], dtype: str) -> list[bytes]:
    rounded = decode(encode(rows[name], dtype), dtype)
    if rows[name].shape != shape or rows[name][0].any() or not np.isfinite(rounded).all():
        raise StateError("not rows that a release can be run with", where=name)
    return [encode(row, dtype) for row in rows[name]]

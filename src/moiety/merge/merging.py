"""Merging experts into a release, and admitting one more into a release that stands."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from moiety.bundle import VerifiedBundle, anchors, verify_bundle
from moiety.errors import ConfigError, PolicyError
from moiety.merge.assemble import assemble
from moiety.merge.leftovers import clean_folder
from moiety.merge.release import open_release
from moiety.merge.roster import MAX_EXPERTS, Roster, roster_digest
from moiety.merge.sources import (
    OpenFiles,
    ground_from_anchor,
    ground_from_release,
    member_from_bundle,
    member_from_release,
)
from moiety.merge.streaming import Progress
from moiety.merge.sweep import Sweep, Watcher, sweep_top_k
from moiety.merge.withdrawal import GONE_BACK

DRAFT = "draft"
"""Where a release lies inside its unfinished folder while its ``top_k`` is tried out."""


@dataclass(frozen=True)
class MergeSummary:
    """What a merge did. ``flags`` are sentences about bundles that a person should read."""

    out: Path
    digest: str
    names: list[str]
    num_bytes: int
    verify_seconds: float
    write_seconds: float
    flags: list[str]
    sweep: Sweep | None = None


def merge(
    anchor: Path,
    bundles: Sequence[Path],
    out: Path,
    *,
    top_k: int | Literal["auto"] | None = None,
    keys: set[str] | None = None,
    progress: Progress | None = None,
    watch: Watcher | None = None,
) -> MergeSummary:
    """Verifies an anchor and bundles, and writes their release: same inputs, same bytes.

    ``top_k`` ``"auto"`` tries numbers out on public text, which ``watch`` hears of and needs torch,
    and writes the one chosen as if it had been given.

    Raises:
        TrustError: something does not hold; nothing is written then.
        StateError: ``out`` exists, or the disk is full.
    """
    if isinstance(top_k, int) and not 1 <= top_k <= MAX_EXPERTS + 1:
        raise ConfigError(f"top_k is {top_k}", remedy="give at least 1, or leave it out")
    begin = time.monotonic()
    with ExitStack() as stack:
        files = stack.enter_context(OpenFiles())
        verified_anchor = anchors.verify_anchor(Path(anchor))
        verified = _verify_bundles(bundles, verified_anchor, keys, stack)
        middle = time.monotonic()
        ground = ground_from_anchor(verified_anchor, files)
        members = [member_from_bundle(bundle, ground) for bundle in verified]
        with clean_folder(out) as folder:
            auto = top_k == "auto"
            place = folder / DRAFT if auto else folder
            place.mkdir(exist_ok=True)
            roster = assemble(
                place,
                ground,
                members,
                top_k=top_k if isinstance(top_k, int) else None,
                progress=progress,
            )
            sweep = None
            if auto:
                said = {b.manifest.owner: b.manifest.probe.public_bits_per_byte for b in verified}
                sweep = sweep_top_k(folder / DRAFT, verified_anchor, said, watch=watch)
                roster = _settle(folder, sweep.top_k)
    trying = sweep.seconds if sweep else 0.0
    seconds = (middle - begin, time.monotonic() - middle - trying)
    done = _summary(out, roster, verified, seconds)
    return replace(done, flags=done.flags + (sweep.flags if sweep else []), sweep=sweep)


def admit(
    release: Path,
    bundle: Path,
    out: Path,
    *,
    keys: set[str] | None = None,
    progress: Progress | None = None,
) -> MergeSummary:
    """A release with one more owner: byte for byte the merge that always had it.

    If the release was tuned everybody goes back to what their bundles hold.

    Raises:
        TrustError: the release or the bundle does not hold, or the owner is in it already.
        StateError: ``out`` exists, or the disk is full.
    """
    begin = time.monotonic()
    standing = open_release(release)
    roster = standing.roster
    with ExitStack() as stack:
        files = stack.enter_context(OpenFiles())
        verified = stack.enter_context(verify_bundle(bundle, anchor=standing.anchor, keys=keys))
        if verified.manifest.owner in standing.names:
            raise PolicyError(
                f"{verified.manifest.owner} is in this release already",
                where=bundle,
                remedy="withdraw the old expert first",
            )
        middle = time.monotonic()
        ground = ground_from_release(standing, files)
        members = [member_from_release(standing, slot, files) for slot in roster.experts[1:]]
        members.append(member_from_bundle(verified, ground))
        with clean_folder(out) as folder:
            grown = assemble(
                folder,
                ground,
                members,
                top_k=roster.top_k,
                progress=progress,
            )
    done = _summary(out, grown, [verified], (middle - begin, time.monotonic() - middle))
    return done if roster.strict else replace(done, flags=[*done.flags, GONE_BACK])


def _settle(folder: Path, top_k: int) -> Roster:
    """The release of the draft in ``folder``, with another ``top_k``, in the draft's place.

    What does not change is linked, so it costs nothing; the draft is gone afterwards.
    """
    draft = open_release(folder / DRAFT)
    with OpenFiles() as files:
        roster = assemble(
            folder,
            ground_from_release(draft, files),
            [member_from_release(draft, slot, files) for slot in draft.roster.experts[1:]],
            top_k=top_k,
        )
    shutil.rmtree(draft.folder)
    return roster


def _verify_bundles(
    folders: Sequence[Path],
    anchor: anchors.AnchorFacts,
    keys: set[str] | None,
    stack: ExitStack,
) -> list[VerifiedBundle]:
    verified: dict[str, VerifiedBundle] = {}
    for folder in folders:
        bundle = stack.enter_context(verify_bundle(Path(folder), anchor=anchor, keys=keys))
        owner = bundle.manifest.owner
        if owner in verified:
            raise PolicyError(f"two bundles of {owner}: {verified[owner].folder}", where=folder)
        verified[owner] = bundle
    return [verified[owner] for owner in sorted(verified)]


def _summary(
    out: Path, roster: Roster, bundles: Sequence[VerifiedBundle], seconds: tuple[float, float]
) -> MergeSummary:
    return MergeSummary(
        out=Path(out),
        digest=roster_digest(roster),
        names=roster.names,
        num_bytes=sum(roster.sizes().values()),
        verify_seconds=seconds[0],
        write_seconds=seconds[1],
        flags=[f"{bundle.manifest.owner}: {flag}" for bundle in bundles for flag in bundle.flags],
    )

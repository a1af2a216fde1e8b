"""Leaving: an owner's signed order obeyed, and the receipt that lets anybody check it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moiety.bundle import orders, papers, signing
from moiety.errors import ConfigError, IntegrityError, PolicyError, SignatureError, StateError
from moiety.merge import layout
from moiety.merge.assemble import assemble
from moiety.merge.leftovers import clean_folder
from moiety.merge.release import Release, open_release, verify_release
from moiety.merge.roster import Roster, Slot, roster_digest
from moiety.merge.sources import OpenFiles, ground_from_release, member_from_release
from moiety.merge.streaming import Progress

GONE_BACK = "the release was tuned: everybody is back at the table of their bundle"
COORDINATOR_KEY = "coordinator.pem"


@dataclass(frozen=True)
class WithdrawalSummary:
    """What a withdrawal did. ``flags`` are sentences a person should read."""

    out: Path
    receipt: Path
    digest_before: str
    digest: str
    names: list[str]
    num_removed: int
    flags: list[str]


def withdraw(
    release: Path,
    name: str,
    order: Path,
    *,
    out: Path | None = None,
    in_place: bool = False,
    key: Path | None = None,
    receipt: Path | None = None,
    progress: Progress | None = None,
) -> WithdrawalSummary:
    """Takes an owner out: what remains is byte for byte the merge that never had the expert.

    If the release was tuned everybody goes back to the table of their bundle.

    ``key`` signs the receipt; without one the coordinator's key in ``~/.moiety`` (or
    ``$MOIETY_HOME``) does, made when first needed. The receipt lies beside the new release.

    Raises:
        TrustError: the release does not hold, or the order is not its owner's for this bundle.
        ConfigError: neither ``out`` nor ``in_place``, or both.
        StateError: ``out`` or the receipt exists, or the disk is full.
    """
    if in_place == (out is not None):
        raise ConfigError("a withdrawal needs a new folder, or to be done in place: one of them")
    target = Path(out or release).absolute()
    before = open_release(Path(release))
    expert = before.expert(name)
    ordered = orders.verify_order(Path(order))
    check_order(before, expert, ordered)
    paper_path = Path(receipt) if receipt else target.with_name(f"{target.name}.receipt.json")
    removed = removed_digests(before, expert)
    with _pending(paper_path) as pending, clean_folder(target, replace=in_place) as folder:
        shrunk = _assemble_without(before, name, folder, progress)
        after = Release(target, shrunk, roster_digest(shrunk), before.anchor)
        paper = papers.Receipt(
            owner=name,
            bundle=ordered.order.bundle,
            order=ordered.digest,
            roster_before=before.digest,
            roster_after=after.digest,
            removed=removed,
            issued=orders.utc_seconds(),
        )
        orders.sign_receipt(paper, Path(key) if key else coordinator_key(), pending)
    held = _still_held(after, removed)
    flags = [f"{where} is a copy of what {name} withdrew" for where in sorted(held)]
    flags += [] if before.roster.strict else [GONE_BACK]
    return WithdrawalSummary(
        target, paper_path, before.digest, after.digest, after.names, len(removed), flags
    )


@contextmanager
def _pending(receipt: Path) -> Iterator[Path]:
    """A hidden place for the receipt, until what it says is true: then it gets its name."""
    if receipt.exists():
        raise StateError("exists already", where=receipt, remedy="name another receipt")
    pending = receipt.with_name(f".{receipt.name}.pending")
    pending.unlink(missing_ok=True)
    try:
        yield pending
        pending.replace(receipt)
    finally:
        pending.unlink(missing_ok=True)


def check_order(release: Release, expert: Slot, order: orders.VerifiedOrder) -> None:
    """Raises ``TrustError`` unless the order is the owner's own, and for this bundle."""
    said, where = order.order, release.folder
    if expert.owner is None or said.owner != expert.owner:
        raise PolicyError(f"the order is {said.owner}'s, not {expert.name}'s", where=where)
    if said.anchor != release.roster.anchor or said.bundle != expert.bundle:
        raise PolicyError(
            f"the order is for another bundle of {said.owner}: {said.bundle[:16]}",
            where=where,
            remedy=f"this release holds {(expert.bundle or '')[:16]}",
        )
    if order.key != expert.key:
        raise SignatureError(
            f"the order is signed by {order.key}, the bundle by {expert.key}", where=where
        )


def _assemble_without(
    before: Release, name: str, folder: Path, progress: Progress | None
) -> Roster:
    roster = before.roster
    with OpenFiles() as files:
        members = [
            member_from_release(before, slot, files)
            for slot in roster.experts[1:]
            if slot.name != name
        ]
        return assemble(
            folder,
            ground_from_release(before, files),
            members,
            top_k=roster.top_k,
            progress=progress,
        )


def removed_digests(release: Release, expert: Slot) -> dict[str, str]:
    """Every tensor and table of an expert by its name in the release, with its digest."""
    removed, tuning = dict(expert.tensors), release.roster.tuning
    removed[layout.table_tensor(expert.slot, untuned=tuning is not None)] = expert.evidence
    if tuning is not None:
        removed[layout.table_tensor(expert.slot)] = tuning.evidence[expert.slot]
    return removed


def _still_held(release: Release, removed: dict[str, str]) -> dict[str, str]:
    """What of ``removed`` an owner in the release still holds: ``owner: tensor``, its digest.

    What equals the anchor's own tensors is public and was never the owner's.
    """
    anchor = release.roster.experts[0]
    gone = set(removed.values()) - set(removed_digests(release, anchor).values())
    return {
        f"{expert.name}: {tensor}": digest
        for expert in release.roster.experts[1:]
        for tensor, digest in removed_digests(release, expert).items()
        if digest in gone
    }


def verify_receipt_against(receipt: Path, release: Path) -> orders.VerifiedReceipt:
    """Checks a receipt, and every byte of the release it speaks of: the expert is not in it.

    Raises:
        TrustError: the receipt or the release does not hold, or they do not belong together, or
            something that was withdrawn is still there.
    """
    verified = orders.verify_receipt(Path(receipt))
    paper = verified.receipt
    after = verify_release(Path(release))  # so the roster's digests are those of the files
    if after.digest != paper.roster_after:
        raise IntegrityError("the receipt is for another release", where=release)
    if paper.owner in after.names or any(e.bundle == paper.bundle for e in after.roster.experts):
        raise PolicyError(f"{paper.owner} is still in the release", where=release)
    held = _still_held(after, paper.removed)
    if held:
        raise PolicyError(f"withdrawn, and still there: {sorted(held)[0]}", where=release)
    return verified


def coordinator_key() -> Path:
    """The coordinator's own key, made when it is first needed."""
    home = Path(os.environ.get("MOIETY_HOME") or Path.home() / ".moiety")
    path = home / COORDINATOR_KEY
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        signing.new_key(path)
    return path

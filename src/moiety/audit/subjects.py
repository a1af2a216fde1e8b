"""What is audited: a run, a bundle or a release, opened as a release that can be attacked.

A run or a bundle is merged alone onto its anchor, in a folder that is thrown away: so the very
tensors are attacked that would be sent, through the code that would run them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from moiety.audit.given import OwnText
from moiety.bundle import anchors, audits, orders, pack, papers, signing, verify_bundle
from moiety.data import PackedText
from moiety.errors import ConfigError, FormatError, StateError
from moiety.files import parse_json, read_limited
from moiety.merge import merge, verify_release

RUN_PAPER, START_PAPER = "run.json", "start.json"
CANARIES = "canaries.json"


@dataclass(frozen=True)
class Subject:
    """One owner's expert as somebody may hold it. ``release`` is the folder that is loaded.

    ``digest`` is that of a release which was there before, ``text`` is what a run was trained on.
    Of a release that is not ``strict`` a mask does not show what a withdrawal leaves.
    """

    kind: Literal["run", "bundle", "release"]
    release: Path
    owner: str
    anchor: str
    expert: str
    promise: papers.Guarantee | None
    digest: str | None = None
    strict: bool = True
    text: OwnText | None = None
    canaries: Path | None = None


@contextmanager
def open_subject(path: Path, anchor: Path | None, owner: str | None) -> Iterator[Subject]:
    """Opens what the owner names; what had to be made for it is gone when the block ends.

    Raises:
        ConfigError: an anchor or an owner that is missing, or too much.
        FormatError: neither a run, nor a bundle, nor a release.
        StateError: a run that is not finished. TrustError: papers that do not hold.
    """
    if (path / "roster.json").exists():
        if anchor is not None:
            raise ConfigError("a release has its own anchor", where="--anchor", remedy="leave it")
        yield _of_release(path, owner)
        return
    if owner is not None:
        raise ConfigError("only a release has several owners", where="--owner", remedy="leave it")
    if anchor is None:
        raise ConfigError(
            "no anchor was named", where="--anchor", remedy="name the anchor's folder"
        )
    is_run = _is_run(path)
    with TemporaryDirectory(prefix="moiety-audit-") as scratch:
        bundle = _packed(path, anchor, Path(scratch)) if is_run else path
        yield _alone(path, bundle, anchor, Path(scratch) / "release")


def _is_run(path: Path) -> bool:
    """A run, or else a bundle."""
    if (path / RUN_PAPER).exists():
        return True
    if (path / START_PAPER).exists():
        raise StateError(
            "this run is not finished", where=path, remedy="go on with moiety train --resume"
        )
    if (path / "manifest.json").exists():
        return False
    raise FormatError(
        "neither a run, nor a bundle, nor a release", where=path, remedy="name one of their folders"
    )


def _of_release(path: Path, owner: str | None) -> Subject:
    release = verify_release(path)
    owners = release.names[1:]
    if owner is None and len(owners) != 1:
        raise ConfigError("whose expert?", where="--owner", remedy=_named(owners))
    if owner is not None and owner not in owners:
        raise ConfigError(
            f"no expert called {owner!r} in this release", where="--owner", remedy=_named(owners)
        )
    slot = release.expert(owner or owners[0])
    manifest = orders.verify_manifest(path / "bundles" / slot.name).manifest
    return Subject(
        kind="release",
        release=path,
        owner=slot.name,
        anchor=manifest.anchor,
        expert=_expert(manifest),
        promise=manifest.privacy.guarantee,
        digest=release.digest,
        strict=release.roster.strict,
    )


def _named(owners: list[str]) -> str:
    return f"name one of: {', '.join(owners)}" if owners else "this release has no owner at all"


def _packed(run: Path, anchor: Path, scratch: Path) -> Path:
    """The bundle that this run would send, signed by a key that nobody keeps."""
    key, bundle = scratch / "key.pem", scratch / "bundle"
    signing.new_key(key)
    pack(run, key, bundle, anchor=anchors.open_facts(anchor))
    return bundle


def _alone(path: Path, bundle: Path, anchor: Path, out: Path) -> Subject:
    with verify_bundle(bundle, anchor=anchors.open_facts(anchor), keys=None) as verified:
        manifest = verified.manifest
    merge(anchor, [bundle], out)
    subject = Subject(
        kind="bundle" if bundle == path else "run",
        release=out,
        owner=manifest.owner,
        anchor=manifest.anchor,
        expert=_expert(manifest),
        promise=manifest.privacy.guarantee,
    )
    return subject if bundle == path else _with_run(subject, path)


def _with_run(subject: Subject, run: Path) -> Subject:
    """What only the run knows: its text, what it kept aside of it, and its canaries."""
    paper = papers.read_paper(papers.RunPaper, run / RUN_PAPER)
    settings = _table(paper.config, "data")
    canaries = run / CANARIES
    if settings.get("canaries") and not canaries.exists():
        # Fail closed: without them the report would say that none were looked for.
        raise StateError(
            "canaries were planted, and the paper that tells which is missing",
            where=canaries,
            remedy="put it back, or train again",
        )
    return replace(
        subject,
        text=_own_text(run),
        canaries=canaries if canaries.exists() else None,
    )


def _own_text(run: Path) -> OwnText:
    """Fails closed where it is gone: nobody could tell then which text is asked back."""
    start, folder = run / START_PAPER, run / "text" / "own"
    begun = parse_json(read_limited(start), start)
    named = _table(begun, "text")
    key, paths = named.get("key"), named.get("paths")
    told = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
    if not (told and "heldout" in begun and isinstance(key, str | None)):
        raise FormatError("does not tell what the run kept aside", where=start)
    parts = [folder / part for part in ("train", "heldout")]
    if not all(part.is_dir() for part in parts):
        raise StateError(
            "the text that this run was trained on is no longer in its folder, so nobody can tell "
            "whether --data is that text",
            where=folder,
            remedy="put it back, or train again; a bundle is audited without it, on your word",
        )
    train, heldout = (PackedText.open(part) for part in parts)
    return OwnText(train, heldout if begun["heldout"] is None else None, key, tuple(paths or ()))


def _table(paper: Any, name: str) -> dict[str, Any]:
    """A table inside a paper that has no type of its own; empty where there is none."""
    found = paper.get(name) if isinstance(paper, dict) else None
    return found if isinstance(found, dict) else {}


def _expert(manifest: papers.Manifest) -> str:
    return audits.expert_digest({name: facts.sha256 for name, facts in manifest.tensors.items()})

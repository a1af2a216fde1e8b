"""What is audited: a run, a bundle or a release, opened as a release that can be attacked.

A run or a bundle is merged alone onto its anchor, in a folder that is thrown away: so the very
tensors are attacked that would be sent, through the code that would run them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from moiety.bundle import anchors, audits, orders, pack, papers, signing, verify_bundle
from moiety.errors import ConfigError, FormatError
from moiety.files import parse_json, read_limited
from moiety.merge import merge, verify_release

RUN_PAPER = "run.json"
CANARIES = "canaries.json"


@dataclass(frozen=True)
class Subject:
    """One owner's expert as somebody may hold it. ``release`` is the folder that is loaded.

    ``digest`` is that of a release which was there before, ``kept_aside`` the share of records that
    a run never trained on, where it chose them itself.
    """

    kind: Literal["run", "bundle", "release"]
    release: Path
    owner: str
    anchor: str
    expert: str
    promise: papers.Guarantee | None
    digest: str | None = None
    kept_aside: float | None = None
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
    is_run = (path / RUN_PAPER).exists()
    if not is_run and not (path / "manifest.json").exists():
        raise FormatError(
            "neither a finished run, nor a bundle, nor a release", where=path,
            remedy="a stopped run is finished with: moiety train --resume",
        )  # fmt: skip
    with TemporaryDirectory(prefix="moiety-audit-") as scratch:
        bundle = _packed(path, anchor, Path(scratch)) if is_run else path
        yield _alone(path, bundle, anchor, Path(scratch) / "release")


def _of_release(path: Path, owner: str | None) -> Subject:
    release = verify_release(path)
    owners = release.names[1:]
    if owner is None and len(owners) != 1:
        raise ConfigError(
            "whose expert?", where="--owner", remedy=f"name one of: {', '.join(owners)}"
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
    )


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
    """What only the run knows: which records it kept aside, and its canaries."""
    paper = papers.read_paper(papers.RunPaper, run / RUN_PAPER)
    data: Any = paper.config.get("data")
    fraction = data.get("heldout_fraction") if isinstance(data, dict) else None
    begun: Any = parse_json(read_limited(run / "start.json"), run / "start.json")
    own = isinstance(begun, dict) and not begun.get("heldout")
    canaries = run / CANARIES
    return Subject(
        **vars(subject)
        | {
            "kept_aside": fraction if own and isinstance(fraction, float) else None,
            "canaries": canaries if canaries.exists() else None,
        }
    )


def _expert(manifest: papers.Manifest) -> str:
    return audits.expert_digest({name: facts.sha256 for name, facts in manifest.tensors.items()})

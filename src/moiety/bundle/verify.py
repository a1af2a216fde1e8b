"""From a hostile folder to a ``VerifiedBundle``, or a ``TrustError``: nothing else can happen.

The order is from cheap to dear, and nothing is parsed before what must come first: the set of
files and their sizes, the signature over the exact manifest bytes, the manifest, the terms, the
anchor, and then every byte of the weights, read once through the handle the merger copies from.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

from moiety.bundle.anchors import AnchorFacts
from moiety.bundle.manifests import (
    CARD,
    MANIFEST,
    SIGNATURE,
    WEIGHTS,
    VerifiedManifest,
    verify_manifest,
)
from moiety.bundle.papers import Manifest, reading
from moiety.bundle.seal import SEAL, check_seal
from moiety.bundle.weights import check_weights, open_weights
from moiety.errors import FormatError, IntegrityError, PolicyError
from moiety.files import digest_bytes, read_limited
from moiety.tensors import TensorFile

CARD_MAX_BYTES = 2**20
FILES = frozenset({MANIFEST, SIGNATURE, WEIGHTS, CARD})


class VerifiedBundle:
    """A bundle that may be used, its weights held open; ``verify_bundle`` is its only maker.

    ``flags`` are sentences for a person: nothing forbids the bundle, but somebody should know.
    """

    def __init__(
        self,
        seal: object,
        folder: Path,
        signed: VerifiedManifest,
        tensors: TensorFile,
        flags: list[str],
    ) -> None:
        check_seal(seal, "VerifiedBundle")
        self.folder = folder
        self.manifest = signed.manifest
        self.digest = signed.digest
        self.key = signed.key
        self.manifest_bytes = signed.manifest_bytes
        self.signature_bytes = signed.signature_bytes
        self.flags = tuple(flags)
        self._tensors = tensors

    def open(self) -> TensorFile:
        """The weights, through the very handle they were checked by. Closed with the bundle."""
        return self._tensors

    def close(self) -> None:
        """Gives the file handle back."""
        self._tensors.close()

    def __enter__(self) -> VerifiedBundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify_bundle(
    folder: Path,
    *,
    anchor: AnchorFacts | None,
    keys: set[str] | None,
    today: date | None = None,
) -> VerifiedBundle:
    """Checks everything about a bundle. Without an anchor, all that needs none; flags say so.

    Raises:
        TrustError: and nothing else, whatever the folder holds.
    """
    with reading(folder):
        return _verify(folder, anchor, keys, today or date.today())


def _verify(
    folder: Path, anchor: AnchorFacts | None, keys: set[str] | None, today: date
) -> VerifiedBundle:
    _check_file_set(folder)
    signed = verify_manifest(folder, keys=keys)
    manifest = signed.manifest
    _check_terms(manifest, today, folder)
    if anchor is not None:
        _check_anchor(manifest, anchor, folder)
    _check_card(folder / CARD, manifest)
    tensors = open_weights(folder / WEIGHTS, manifest)
    try:
        flags = check_weights(tensors, manifest, anchor)
    except BaseException:
        tensors.close()
        raise
    if keys is None:
        flags.append(f"no list of allowed keys was given: signed by {signed.key}")
    return VerifiedBundle(SEAL, folder, signed, tensors, flags)


def _check_file_set(folder: Path) -> None:
    """Exactly the four files, all of them plain. Stops at the first stranger."""
    found = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in FILES:
                raise IntegrityError(f"no part of a bundle: {entry.name!a}", where=folder)
            if not entry.is_file(follow_symlinks=False):
                raise FormatError("not a regular file", where=folder / entry.name)
            found.add(entry.name)
    for name in sorted(FILES - found):
        raise IntegrityError(f"{name} is missing", where=folder)


def _check_terms(manifest: Manifest, today: date, folder: Path) -> None:
    if manifest.terms.expired(today):
        raise PolicyError(
            f"its terms ended on {manifest.terms.expires}",
            where=folder,
            remedy="ask the owner for a bundle with new terms",
        )


def _check_anchor(manifest: Manifest, anchor: AnchorFacts, folder: Path) -> None:
    if manifest.anchor != anchor.digest:
        raise PolicyError(
            f"trained for another anchor: {manifest.anchor[:12]}, not {anchor.digest[:12]}",
            where=folder,
        )
    for field in ("family", "num_layers", "width", "hidden", "vocab"):
        ours, theirs = getattr(manifest, field), getattr(anchor.paper, field)
        if ours != theirs:
            raise PolicyError(f"{field} is {ours}, the anchor's is {theirs}", where=folder)


def _check_card(path: Path, manifest: Manifest) -> None:
    card = read_limited(path, CARD_MAX_BYTES)
    claim = manifest.files[CARD]
    if len(card) != claim.bytes or digest_bytes(card) != claim.sha256:
        raise IntegrityError("not the card that was signed", where=path)

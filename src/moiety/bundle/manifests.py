"""A manifest and its signature: what a bundle and a release's ``bundles/NAME/`` both hold."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from moiety.bundle.papers import MANIFEST_MAX_BYTES, Manifest, parse_paper
from moiety.bundle.seal import SEAL, check_seal
from moiety.bundle.signing import ENVELOPE_MAX_BYTES, check_allowed, open_envelope
from moiety.bundle.summary import DECIMALS
from moiety.errors import FormatError, IntegrityError
from moiety.family import EVIDENCE
from moiety.files import digest_bytes, read_limited

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "signature.json"
WEIGHTS: Final = "expert.safetensors"
CARD: Final = "README.md"


class VerifiedManifest:
    """A manifest whose signature holds. ``verify_manifest`` is its only maker."""

    def __init__(
        self, seal: object, manifest: Manifest, key: str, data: bytes, signature: bytes
    ) -> None:
        check_seal(seal, "VerifiedManifest")
        self.manifest = manifest
        self.key = key
        self.manifest_bytes = data
        self.signature_bytes = signature
        self.digest = digest_bytes(data)


def verify_manifest(folder: Path, *, keys: set[str] | None = None) -> VerifiedManifest:
    """Reads ``manifest.json`` and ``signature.json`` of a folder, whatever else is in it.

    Raises:
        SignatureError: not signed, or by a key not among ``keys``.
        IntegrityError: what was signed is not the manifest.
        FormatError: not a manifest, or one that contradicts itself.
    """
    data = read_limited(folder / MANIFEST, MANIFEST_MAX_BYTES)
    signature = read_limited(folder / SIGNATURE, ENVELOPE_MAX_BYTES)
    opened = open_envelope(signature, "expert", folder / SIGNATURE)
    check_allowed(opened.key, keys, folder / SIGNATURE)
    if opened.payload != data:
        raise IntegrityError("another manifest was signed", where=folder / SIGNATURE)
    manifest = parse_paper(Manifest, data, folder / MANIFEST)
    check_consistent(manifest, folder / MANIFEST)
    return VerifiedManifest(SEAL, manifest, opened.key, data, signature)


def check_consistent(manifest: Manifest, where: Path) -> None:
    """Raises ``FormatError`` unless the manifest lists exactly the files and tensors it must."""
    if set(manifest.files) != {CARD} or set(manifest.shards) != {WEIGHTS}:
        raise FormatError(f"files must be {CARD}, shards {WEIGHTS}", where=where)
    _check_audit(manifest, where)
    if manifest.recipe.rank != manifest.rank:
        raise FormatError("two ranks for one expert", where=where)
    shapes = manifest.shapes()
    if shapes.keys() != manifest.tensors.keys():
        odd = sorted(shapes.keys() ^ manifest.tensors.keys())[0]
        raise FormatError(f"a tensor too many or too few: {odd}", where=where)
    dtypes = set()
    for name, tensor in manifest.tensors.items():
        if tensor.shape != shapes[name]:
            raise FormatError(f"{name} has not the shape {list(shapes[name])}", where=where)
        if name != EVIDENCE:
            dtypes.add(tensor.dtype)
        elif tensor.dtype != "F32":
            raise FormatError(f"{name} is {tensor.dtype}; a table is F32", where=where)
    if len(dtypes) != 1:
        raise FormatError("matrices of more than one dtype", where=where)


def _check_audit(manifest: Manifest, where: Path) -> None:
    """An audit that finds the promise false fails, and what failed is not packed."""
    audit, promise = manifest.audit, manifest.privacy.guarantee
    if audit is None or promise is None or audit.epsilon_low is None:
        return
    if audit.epsilon_low > round(promise.epsilon, DECIMALS):
        raise FormatError("an audit that refutes the promise beside it", where=where)

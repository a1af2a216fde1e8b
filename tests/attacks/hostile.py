"""What an attacker can do: change a bundle and sign it again with a key that is allowed.

An attack that only breaks a digest or the signature proves little. Most of these attackers are
owners in good standing whose well-signed bundle is itself the weapon.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.makers import read_arrays

from moiety.bundle import VerifiedBundle, anchors, signing, verify_bundle
from moiety.errors import TrustError
from moiety.files import canonical_json
from moiety.tensors import array_plan, write_tensors

FILES = ("README.md", "expert.safetensors", "manifest.json", "signature.json")


@dataclass
class Target:
    """A bundle under attack, and where its owner keeps the key."""

    folder: Path
    home: Path
    owner: str

    @property
    def key(self) -> Path:
        return self.home / f"{self.owner}.pem"

    @property
    def weights(self) -> Path:
        return self.folder / "expert.safetensors"

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_bytes())  # type: ignore[no-any-return]

    def verify(self, **changes: Any) -> VerifiedBundle:
        """Verifies as a coordinator would who knows this owner's key."""
        wanted: dict[str, Any] = {
            "anchor": anchors.open_facts(self.home / "anchor"),
            "keys": {signing.load_public(self.key.with_suffix(".pub"))},
            "today": date(2030, 1, 1),
        }
        return verify_bundle(self.folder, **(wanted | changes))

    def refused(self, kind: type[TrustError], match: str, **changes: Any) -> None:
        """Asserts exactly this kind of refusal, with a message that can be shown."""
        with pytest.raises(kind, match=match) as caught:
            self.verify(**changes).close()
        assert type(caught.value) is kind
        str(caught.value).encode("utf-8")

    def sign(self, data: bytes) -> None:
        """Makes ``data`` the manifest and signs it with the owner's key."""
        (self.folder / "manifest.json").write_bytes(data)
        envelope = signing.sign_envelope(data, "expert", signing.load_key(self.key))
        (self.folder / "signature.json").write_bytes(envelope)

    def change_manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Edits the manifest and signs it again."""
        manifest = self.manifest()
        change(manifest)
        self.sign(canonical_json(manifest))

    def change_text(self, old: str, new: str) -> None:
        """Edits the manifest's bytes, which must hold ``old``, and signs them."""
        data = (self.folder / "manifest.json").read_bytes()
        assert old.encode() in data
        self.sign(data.replace(old.encode(), new.encode("utf-8", "surrogatepass"), 1))

    def change_arrays(self, change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> None:
        """Edits the weights and signs a manifest that fits them."""
        arrays = read_arrays(self.weights)
        change(arrays)
        digests = write_tensors(
            self.weights, [array_plan(name, arrays[name]) for name in sorted(arrays)]
        )

        def fit(manifest: dict[str, Any]) -> None:
            for name, digest in digests.items():
                manifest["tensors"][name]["sha256"] = digest

        self.change_manifest(fit)
        self.seal_files()

    def seal_files(self) -> None:
        """Signs a manifest with the files' true sizes and digests, whatever they now hold."""

        def fit(manifest: dict[str, Any]) -> None:
            card, data = (self.folder / "README.md").read_bytes(), self.weights.read_bytes()
            manifest["files"]["README.md"] = {
                "bytes": len(card),
                "sha256": hashlib.sha256(card).hexdigest(),
            }
            header = data[: 8 + int.from_bytes(data[:8], "little")]
            manifest["shards"]["expert.safetensors"] = {
                "bytes": len(data),
                "header_sha256": hashlib.sha256(header).hexdigest(),
            }

        self.change_manifest(fit)


def split_weights(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_weights(header: str | dict[str, Any], body: bytes, length: int = 0) -> bytes:
    """A safetensors file with any header, padded to ``length``."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text = text.ljust(length)
    return len(text).to_bytes(8, "little") + text + body

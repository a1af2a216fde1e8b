"""The file is exchanged between the check and the use."""

from __future__ import annotations

import hashlib

from tests.attacks.hostile import Target


def test_the_weights_used_are_the_weights_checked(target: Target) -> None:
    honest = target.weights.read_bytes()
    name = "layers.0.mlp.up_proj.weight"
    with target.verify() as bundle:
        swapped = target.folder / "swapped"
        swapped.write_bytes(bytes(len(honest)))
        swapped.replace(target.weights)
        (target.folder / "manifest.json").write_bytes(b"{}")
        assert bundle.open().digest(name) == bundle.manifest.tensors[name].sha256
        assert bundle.digest == hashlib.sha256(bundle.manifest_bytes).hexdigest()

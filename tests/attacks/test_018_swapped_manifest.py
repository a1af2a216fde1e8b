"""Parts of two honest bundles put together."""

from __future__ import annotations

import shutil

import pytest
from tests.attacks.hostile import Target

from moiety.errors import IntegrityError, SignatureError, TrustError


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["manifest.json"], IntegrityError),
        (["signature.json"], SignatureError),
        (["manifest.json", "signature.json"], SignatureError),
        (["expert.safetensors"], IntegrityError),
        (["README.md"], IntegrityError),
    ],
)
def test_parts_of_another_bundle_are_refused(
    target: Target, names: list[str], kind: type[TrustError]
) -> None:
    for name in names:
        shutil.copy(target.home / "mallory.expert" / name, target.folder / name)
    target.refused(kind, ".")


def test_a_manifest_over_anothers_weights_is_refused_by_key_or_digest(target: Target) -> None:
    for name in ("manifest.json", "signature.json"):
        shutil.copy(target.home / "mallory.expert" / name, target.folder / name)
    target.refused(IntegrityError, "signed", keys=None)

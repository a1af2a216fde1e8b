"""A tensor too many, or too few."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError, IntegrityError


def _extra(manifest: dict[str, Any], name: str) -> None:
    manifest["tensors"][name] = manifest["tensors"]["router.evidence"]


@pytest.mark.parametrize(
    "name",
    [
        "layers.2.mlp.up_proj.weight",
        "layers.0.router.token",
        "layers.0.router.evidence",
        "evidence",
        "model.embed_tokens.weight",
        "layers.00.mlp.up_proj.weight",
        "é",
        "",
    ],
)
def test_a_tensor_too_many_is_refused(target: Target, name: str) -> None:
    target.change_manifest(lambda manifest: _extra(manifest, name))
    target.refused(FormatError, "a tensor too many|not a Manifest")


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "router.evidence"])
def test_a_tensor_too_few_is_refused(target: Target, name: str) -> None:
    target.change_manifest(lambda manifest: manifest["tensors"].pop(name))
    target.refused(FormatError, "too few")


@pytest.mark.parametrize("name", ["layers.1.mlp.up_proj.weight", "router.evidence"])
def test_a_tensor_too_few_in_the_file_is_refused(target: Target, name: str) -> None:
    target.change_arrays(lambda arrays: arrays.pop(name))
    target.refused(IntegrityError, "cannot be in this file")


def test_thousands_of_tensors_are_refused(target: Target) -> None:
    def flood(manifest: dict[str, Any]) -> None:
        manifest["tensors"] |= {
            f"t{n}": manifest["tensors"]["router.evidence"] for n in range(20_000)
        }

    target.change_manifest(flood)
    target.refused(FormatError, "tensors")


def test_a_giant_manifest_is_refused_unread(target: Target) -> None:
    def flood(manifest: dict[str, Any]) -> None:
        manifest["privacy"]["statement"] = "x" * (4 * 2**20)

    target.change_manifest(flood)
    target.refused(FormatError, "the limit is")

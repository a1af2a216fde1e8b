"""Shapes and sizes that do not fit one another."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError, IntegrityError, PolicyError, TrustError

NAME = "layers.0.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    "shape", [[8, 16], [128], [16, 8, 1], [], [16, 0], [-16, -8], [16, 2**40], [16, 8.0], "16x8"]
)
def test_another_shape_is_refused(target: Target, shape: object) -> None:
    target.change_manifest(lambda manifest: manifest["tensors"][NAME].update(shape=shape))
    target.refused(FormatError, "shape")


@pytest.mark.parametrize("vocab", [31, 33, 64])
def test_a_table_of_another_length_is_refused(target: Target, vocab: int) -> None:
    def shape(manifest: dict[str, Any]) -> None:
        manifest["tensors"]["router.evidence"].update(shape=[vocab])

    target.change_manifest(shape)
    target.refused(FormatError, "router.evidence has not the shape")
    target.change_manifest(lambda manifest: manifest.update(vocab=vocab))
    target.refused(PolicyError, f"vocab is {vocab}, the anchor's is 32")
    target.refused(IntegrityError, "cannot be in this file", anchor=None)


@pytest.mark.parametrize("size", [0, 1, 2**52, 2**53, -1])
@pytest.mark.parametrize(
    ("kind", "name"), [("shards", "expert.safetensors"), ("files", "README.md")]
)
def test_another_file_size_is_refused(target: Target, kind: str, name: str, size: int) -> None:
    target.change_manifest(lambda manifest: manifest[kind][name].update(bytes=size))
    with pytest.raises(TrustError):
        target.verify().close()


def test_a_wrong_header_digest_is_refused_though_every_tensor_is_right(target: Target) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        manifest["shards"]["expert.safetensors"]["header_sha256"] = "0" * 64

    target.change_manifest(lie)
    target.refused(IntegrityError, "not the header the manifest implies")


def test_a_manifest_over_its_limit_is_refused_unread(target: Target) -> None:
    with (target.folder / "manifest.json").open("r+b") as file:
        file.truncate(2**40)
    target.refused(FormatError, "the limit is")


def test_a_card_over_its_limit_is_refused_unread(target: Target) -> None:
    (target.folder / "README.md").write_bytes(b"#" * (2**20 + 1))
    target.seal_files()
    target.refused(FormatError, "the limit is")

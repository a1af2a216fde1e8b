"""Bytes of one type sold as another."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError, IntegrityError

NAME = "layers.0.mlp.gate_proj.weight"


@pytest.mark.parametrize("dtype", ["F64", "I32", "U8", "F8_E4M3", "f32", "", 4])
def test_a_dtype_no_expert_has_is_refused(target: Target, dtype: object) -> None:
    target.change_manifest(lambda manifest: manifest["tensors"][NAME].update(dtype=dtype))
    target.refused(FormatError, "dtype")


def test_one_matrix_of_another_dtype_is_refused(target: Target) -> None:
    target.change_manifest(lambda manifest: manifest["tensors"][NAME].update(dtype="BF16"))
    target.refused(FormatError, "more than one dtype")


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_rounded_table_is_refused(target: Target, dtype: str) -> None:
    target.change_manifest(
        lambda manifest: manifest["tensors"]["router.evidence"].update(dtype=dtype)
    )
    target.refused(FormatError, "router.evidence is .*; a table is F32")


def test_a_dtype_unlike_the_headers_is_refused(target: Target) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        for name, tensor in manifest["tensors"].items():
            if name.endswith(".weight"):
                tensor["dtype"] = "BF16"

    target.change_manifest(lie)
    target.refused(IntegrityError, "cannot be in this file")


def test_f16_sold_as_bf16_is_refused(target: Target) -> None:
    data = target.weights.read_bytes()
    target.weights.write_bytes(data.replace(b'"F32"', b'"I32"', 1))
    target.seal_files()
    target.refused(IntegrityError, "not the header the manifest implies")

"""Bytes between tensors, behind them, or shared by two."""

from __future__ import annotations

from typing import Any

from tests.attacks.hostile import Target, join_weights, split_weights

from moiety.errors import FormatError, IntegrityError


def test_a_hole_between_tensors_is_refused(target: Target) -> None:
    header, body = split_weights(target.weights.read_bytes())
    last = max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
    for entry in header.values():
        if entry.get("data_offsets", [0, 0])[1] == last:
            entry["data_offsets"] = [place + 64 for place in entry["data_offsets"]]
    _write(target, header, body + bytes(64))
    target.refused(IntegrityError, "cannot be in this file")


def test_bytes_behind_the_tensors_are_refused(target: Target) -> None:
    target.weights.write_bytes(target.weights.read_bytes() + bytes(4096))
    target.seal_files()
    target.refused(IntegrityError, "cannot be in this file")


def test_overlapping_tensors_are_refused(target: Target) -> None:
    header, body = split_weights(target.weights.read_bytes())
    first, second = "layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight"
    header[second]["data_offsets"] = header[first]["data_offsets"]
    _write(target, header, body)
    target.refused(FormatError, "a hole or an overlap")


def _write(target: Target, header: dict[str, Any], body: bytes) -> None:
    target.weights.write_bytes(join_weights(header, body, length=4096 - 8))
    target.seal_files()

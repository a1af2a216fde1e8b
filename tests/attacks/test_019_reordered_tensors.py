"""The same tensors in another order: a second byte form of one expert."""

from __future__ import annotations

from tests.attacks.hostile import Target
from tests.makers import read_arrays

from moiety.errors import IntegrityError
from moiety.tensors import array_plan, write_tensors


def test_tensors_in_another_order_are_refused(target: Target) -> None:
    arrays = read_arrays(target.weights)
    names = sorted(arrays, reverse=True)
    write_tensors(target.weights, [array_plan(name, arrays[name]) for name in names])
    target.seal_files()
    target.refused(IntegrityError, "not the header the manifest implies")


def test_two_tensors_that_exchanged_their_bytes_are_refused(target: Target) -> None:
    arrays = read_arrays(target.weights)
    one, two = "layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"
    arrays[one], arrays[two] = arrays[two], arrays[one]
    write_tensors(target.weights, [array_plan(name, arrays[name]) for name in sorted(arrays)])
    target.seal_files()
    target.refused(IntegrityError, "not the tensor that was signed")

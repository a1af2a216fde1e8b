"""A header length that would allocate whatever the attacker likes."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target, join_weights, split_weights

from moiety.errors import FormatError, IntegrityError


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, 100_000_001, 4097 * 2, 0, 1])
def test_a_header_length_that_lies_is_refused(target: Target, length: int) -> None:
    data = target.weights.read_bytes()
    target.weights.write_bytes(length.to_bytes(8, "little") + data[8:])
    target.seal_files()
    target.refused(FormatError, "header|JSON")


def test_a_header_as_large_as_the_file_is_refused_before_it_is_parsed(target: Target) -> None:
    header, body = split_weights(target.weights.read_bytes())
    target.weights.write_bytes(join_weights(header, body, length=50_000_000))
    target.seal_files()
    target.refused(IntegrityError, "cannot be in this file")


def test_a_sparse_giant_is_refused_by_its_size(target: Target) -> None:
    with target.weights.open("r+b") as file:
        file.truncate(2**40)
    target.refused(FormatError, "the limit is")

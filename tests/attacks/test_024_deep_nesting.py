"""JSON nested until the parser falls over."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target, join_weights, split_weights

from moiety.errors import FormatError

DEPTH = 200_000


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_deep_envelope_is_refused(target: Target, opening: str) -> None:
    (target.folder / "signature.json").write_text(opening * DEPTH)
    target.refused(FormatError, "not JSON")


def test_a_deep_but_closed_envelope_is_refused(target: Target) -> None:
    (target.folder / "signature.json").write_text("[" * DEPTH + "]" * DEPTH)
    target.refused(FormatError, "not JSON|not a")


@pytest.mark.parametrize("depth", [150, 900, DEPTH])
def test_a_deep_manifest_well_signed_is_refused(target: Target, depth: int) -> None:
    target.change_text('"text":null', '"text":' + "[" * depth + "]" * depth)
    target.refused(FormatError, "not JSON|not a Manifest")


def test_a_deep_weights_header_is_refused(target: Target) -> None:
    _, body = split_weights(target.weights.read_bytes())
    target.weights.write_bytes(join_weights("[" * 4088, body))
    target.seal_files()
    target.refused(FormatError, "not JSON")

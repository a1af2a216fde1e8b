"""Text that is not Unicode."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target, join_weights, split_weights

from moiety.errors import FormatError, IntegrityError


@pytest.mark.parametrize(
    "junk", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x00"]
)
def test_bytes_that_are_not_utf8_are_refused(target: Target, junk: bytes) -> None:
    data = (target.folder / "manifest.json").read_bytes()
    target.sign(data.replace(b"victim", b"vic" + junk + b"tim", 1))
    target.refused(FormatError, "not JSON|not a Manifest")


@pytest.mark.parametrize("place", ['"owner":"victim"', '"contact":null'])
def test_a_lone_surrogate_is_refused(target: Target, place: str) -> None:
    key = place.split(":")[0]
    target.change_text(place, key + ':"\\ud800"')
    target.refused(FormatError, ".")


def test_a_lone_surrogate_as_a_key_is_refused(target: Target) -> None:
    target.change_text('"owner":"victim"', '"owner":"victim","\\udfff":1')
    target.refused(FormatError, ".")


def test_a_byte_order_mark_is_refused(target: Target) -> None:
    target.sign(b"\xef\xbb\xbf" + (target.folder / "manifest.json").read_bytes())
    target.refused(FormatError, "not JSON")


def test_a_lone_surrogate_in_a_tensor_name_is_refused(target: Target) -> None:
    header, body = split_weights(target.weights.read_bytes())
    header["\ud800\x1b[2J"] = header.pop("router.evidence")
    target.weights.write_bytes(join_weights(header, body, length=4096 - 8))
    target.seal_files()
    target.refused(IntegrityError, "not the header")

"""Text smuggled in the weights header or its padding."""

from __future__ import annotations

from tests.attacks.hostile import Target, join_weights

from moiety.errors import IntegrityError


def test_metadata_beside_the_format_is_refused(target: Target) -> None:
    data = target.weights.read_bytes()
    secret = data.replace(b'{"format":"pt"}', b'{"format":"pt","note":"patient 7"}', 1)
    header, body = secret[8 : 8 + 4088 + 19].rstrip(b" "), data[4096:]
    target.weights.write_bytes(join_weights(header.decode(), body, length=4088))
    target.seal_files()
    target.refused(IntegrityError, "not the header the manifest implies")


def test_text_in_the_padding_is_refused(target: Target) -> None:
    data = target.weights.read_bytes()
    target.weights.write_bytes(data[:4000] + b"\t" * 96 + data[4096:])
    target.seal_files()
    target.refused(IntegrityError, "not the header the manifest implies")

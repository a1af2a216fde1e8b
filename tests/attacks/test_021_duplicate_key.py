"""One JSON key twice: the signer reads the first, the verifier the last."""

from __future__ import annotations

from tests.attacks.hostile import Target

from moiety.errors import FormatError


def test_a_key_twice_in_the_manifest_is_refused(target: Target) -> None:
    target.change_text('"owner":"victim"', '"owner":"anybody","owner":"victim"')
    target.refused(FormatError, "a key occurs twice")


def test_a_key_twice_in_the_envelope_is_refused(target: Target) -> None:
    path = target.folder / "signature.json"
    data = path.read_text().replace('"payload":', '"payload":"","payload":', 1)
    path.write_text(data)
    target.refused(FormatError, "a key occurs twice")

"""Signed well, by somebody we do not know."""

from __future__ import annotations

from tests.attacks.hostile import Target

from moiety.bundle import signing
from moiety.errors import SignatureError


def test_a_key_that_is_not_allowed_is_refused(target: Target) -> None:
    mallory = signing.load_public(target.home / "mallory.pub")
    target.refused(SignatureError, "not a key you allow", keys={mallory})
    target.refused(SignatureError, "not a key you allow", keys=set())


def test_without_a_list_of_keys_the_signer_is_flagged(target: Target) -> None:
    with target.verify(keys=None) as bundle:
        assert bundle.key in bundle.flags[-1]

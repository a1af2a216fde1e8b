"""The token that only verifying code holds: without it no ``Verified...`` object can be made."""

from __future__ import annotations

SEAL = object()


def check_seal(seal: object, kind: str) -> None:
    """Raises ``TypeError`` (a bug of the caller) unless ``seal`` is the token."""
    if seal is not SEAL:
        raise TypeError(f"a {kind} is made by verifying, never by hand")

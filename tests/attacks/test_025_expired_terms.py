"""An expert whose owner no longer allows its use."""

from __future__ import annotations

from datetime import date

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError, PolicyError


def test_expired_terms_are_refused(target: Target) -> None:
    target.change_manifest(lambda manifest: manifest["terms"].update(expires="2029-12-31"))
    target.refused(PolicyError, "its terms ended on 2029-12-31")
    target.verify(today=date(2029, 12, 31)).close()


@pytest.mark.parametrize(
    "expires", ["2029-12-31T00:00:00", "31.12.2029", "2029-02-30", 1893456000, "", "9" * 5000]
)
def test_a_date_that_is_none_is_refused(target: Target, expires: object) -> None:
    target.change_manifest(lambda manifest: manifest["terms"].update(expires=expires))
    target.refused(FormatError, "not a Manifest|canonical")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("purposes", []),
        ("purposes", ["research", "any"]),
        ("purposes", ["b", "a"]),
        ("purposes", ["a", "a"]),
        ("purposes", ["Ünder"]),
        ("licence", "MIT OR GPL"),
        ("licence", ""),
        ("contact", "line\nbreak"),
        ("contact", "\u202egnp.exe"),
        ("contact", "\x1b[2J"),
    ],
)
def test_terms_out_of_form_are_refused(target: Target, field: str, value: object) -> None:
    target.change_manifest(lambda manifest: manifest["terms"].update({field: value}))
    target.refused(FormatError, f"terms.{field}")

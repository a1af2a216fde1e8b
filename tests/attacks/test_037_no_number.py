"""Numbers that JSON does not have."""

from __future__ import annotations

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-1", "1e9"])
def test_a_number_without_end_is_refused(target: Target, number: str) -> None:
    target.change_text('"anchor":1.645', f'"anchor":{number}')
    target.refused(FormatError, "not JSON|not a Manifest")


@pytest.mark.parametrize("value", ["null", '"1.645"', "true", "[1.645]", "{}"])
def test_another_type_is_refused(target: Target, value: str) -> None:
    target.change_text('"anchor":1.645', f'"anchor":{value}')
    target.refused(FormatError, "not a Manifest")


@pytest.mark.parametrize("whole", ["null", "[]", "1", '"moiety.expert/1"', "{}", "", "true"])
def test_a_paper_that_is_no_table_is_refused(target: Target, whole: str) -> None:
    target.sign(whole.encode())
    target.refused(FormatError, "not JSON|not a Manifest")
    (target.folder / "signature.json").write_text(whole)
    target.refused(FormatError, "not JSON|not an Envelope")

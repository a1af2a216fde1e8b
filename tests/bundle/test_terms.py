"""What an owner may write in terms.toml, and how a mistake is told."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from moiety.bundle.papers import Terms, read_terms
from moiety.errors import ConfigError


def _read(tmp_path: Path, text: str) -> Terms:
    path = tmp_path / "terms.toml"
    path.write_text(text, encoding="utf-8")
    return read_terms(path)


def test_without_a_word_all_rights_stay_with_the_owner(tmp_path: Path) -> None:
    assert _read(tmp_path, "") == Terms()
    assert Terms().summary() == "LicenseRef-Proprietary, for any, without a last day"


@pytest.mark.parametrize("head", ["", "[terms]\n"])
@pytest.mark.parametrize("day", ["2030-12-31", '"2030-12-31"'])
def test_every_key_is_read_at_the_top_or_in_a_table(tmp_path: Path, head: str, day: str) -> None:
    terms = _read(
        tmp_path,
        f'{head}licence = "CC-BY-4.0"\npurposes = ["research", "care", "care"]\n'
        f'expires = {day}\ncontact = "data@clinic.example"\n',
    )
    assert terms == Terms(
        licence="CC-BY-4.0",
        purposes=("care", "research"),
        expires=date(2030, 12, 31),
        contact="data@clinic.example",
    )


@pytest.mark.parametrize(
    "licence", ["MIT", "Apache-2.0", "CC0-1.0", "LicenseRef-City-Hospital.1", "NOASSERTION"]
)
def test_licences_that_pass(tmp_path: Path, licence: str) -> None:
    assert _read(tmp_path, f'licence = "{licence}"').licence == licence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('licence = "Apache 2.0"', "did you mean 'Apache-2.0'"),
        ('licence = "apache-2.0"', "did you mean 'Apache-2.0'"),
        ('licence = "mine"', "write 'LicenseRef-YOUR-NAME'"),
        ('licence = "LicenseRef-"', "not an SPDX id"),
        ('licence = "LicenseRef-my licence"', "not an SPDX id"),
        ("licence = 3", "licence: must be text, in quotes"),
        ('license = "MIT"', "unknown key 'license'.*known are licence, purposes"),
        ("purposes = []", "purposes: .*at least one"),
        ('purposes = "any"', "purposes: "),
        ('purposes = ["any", "care"]', "'any' stands alone"),
        ('purposes = ["Patient Care"]', "lower-case letters"),
        ('expires = "soon"', "'soon' is not a date"),
        ("expires = 2030-12-31T10:00:00", "a day without a time"),
        ("expires = 2030", "expires: "),
        ('contact = "a\\nb"', "one line"),
        ("[terms]\n[more]", "unknown key 'more'"),
        ("licence = ", "not TOML"),
        ("[" * 100_000, "limit|not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, text)
    assert caught.match(message)
    assert caught.value.where is not None


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open"):
        read_terms(tmp_path / "terms.toml")


def test_the_last_day_still_counts() -> None:
    terms = Terms(expires=date(2030, 6, 30))
    assert not terms.expired(date(2030, 6, 30))
    assert terms.expired(date(2030, 7, 1))
    assert not Terms().expired(date(9999, 1, 1))

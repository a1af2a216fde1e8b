"""A policy file, and the page that shows it."""

from __future__ import annotations

import tomllib

import pytest
from tests.docs.pages import DOCS, blocks, sections

from moiety.audit.policy import read_policy
from moiety.bundle.audits import Policy, Threshold
from moiety.errors import ConfigError


def written(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    return path


def test_the_page_shows_the_default_policy(tmp_path):
    (shown,) = [block for block in blocks("toml") if "extracted_excess" in block.text]
    assert shown.text in sections(DOCS / "formats.md")["audit-policy.toml"]
    assert tomllib.loads(shown.text) == Policy().model_dump()
    assert read_policy(written(tmp_path, shown.text)) == read_policy(None) == Policy()


def test_what_a_file_leaves_out_keeps_its_default(tmp_path):
    path = written(tmp_path, "max_age_days = 7\n[membership_excess]\nfail = 1\n[epsilon_low]\n")
    expected = {
        "max_age_days": 7,
        "membership_excess": Threshold(warn=Policy().membership_excess.warn, fail=1.0),
    }
    assert read_policy(path) == Policy().model_copy(update=expected)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        ("extracted = 1", "unknown key 'extracted'", "extracted_excess"),
        (
            "[epsilon_low]\nwran = 1",
            "unknown key 'epsilon_low.wran'",
            "known are epsilon_low.warn, epsilon_low.fail",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_name_and_the_known_ones(
    tmp_path, text, message, remedy
):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_policy(path)
    assert caught.value.message == message
    assert caught.value.where == str(path)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_age_days = 'ten'", "max_age_days"),
        ("max_age_days = -1", "max_age_days"),
        ("epsilon_low = 3.0", "epsilon_low"),
        ("[epsilon_low]\nwarn = nan", "epsilon_low.warn"),
        ("[epsilon_low]\nwarn = true", "epsilon_low.warn"),
        ("[epsilon_low]\nwarn = 9", "warns only above what fails"),
        ("max_age_days = {days = 1}", "max_age_days"),
        ("= 3", "not TOML"),
    ],
)
def test_a_bad_value_is_refused(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_policy(path)
    assert caught.value.where == str(path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "policy.toml"
    with pytest.raises(ConfigError, match="cannot open"):
        read_policy(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        read_policy(path)

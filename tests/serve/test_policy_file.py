"""A policy that does not hold: what is wrong with which key, in plain words, and what to do."""

from __future__ import annotations

import pytest

from moiety.errors import ConfigError
from moiety.serve.policy import Key, hash_key, read_policy

FIELDS = ", ".join(Key.model_fields)
KEY = "[[keys]]\nid = 'a'\nhash = '{hash}'\n"
ID = "must be at most 63 lower-case letters, digits, '-' and '_'"
NO_POLICIES = [
    ("keys = 5", "keys: must be a list, in square brackets"),
    ("[keys]\nid = 'a'", "keys: must be a list, in square brackets"),
    ("keys = [5]", "key number 1: must be a table of fields"),
    (KEY + "[[keys]]\nhash = 'x'", "key number 2: id: missing"),
    ("[[keys]]\nid = 'a'", "key a: hash: missing"),
    ("[[keys]]\nid = 'local'\nhash = '{hash}'", "key local: 'local' is what metrics"),
    ("[[keys]]\nid = 'admin'\nhash = '{hash}'", "key admin: 'admin' is what metrics"),
    ("[[keys]]\nid = '-'\nhash = '{hash}'", f"key -: id: {ID}"),
    ("[[keys]]\nid = 'App One'\nhash = '{hash}'", f"key App One: id: {ID}"),
    ("[[keys]]\nid = \"a\\u001b\"\nhash = '{hash}'", rf"key a\x1b: id: {ID}"),
    ("[[keys]]\nid = 'a'\nhash = 'sha256:...'", "key a: hash: must be sha256: and the 64 hex"),
    (KEY + "expert = ['amy']", f"key a: expert: no such field; there are {FIELDS}"),
    (KEY + "[[keys]]\nid = 'b'\nhsh = '{hash}'", "key b: hsh: no such field"),
    ("experts = ['amy']", "experts: no such field; there are admin, keys"),
    ("[admin]\nkey = 'x'", "admin: key: no such field; there are hash"),
    (KEY + "experts = 'amy'", "key a: experts: must be a list, in square brackets"),
    (KEY + "experts = ['anchor']", "key a: experts: 'anchor' has a meaning of its own"),
    (KEY + "bound = ['amy']\nexperts = ['amy']", "key a: bound and experts exclude each other"),
    (KEY + "bound = ['amy']\nexperts = 'all'", "key a: bound and experts exclude each other"),
    (KEY + "purposes = ['any', 'care']", "key a: 'any' stands alone"),
    (KEY + "purposes = ['Care!']", "key a: purposes: must be at most 63 lower-case letters"),
    (KEY + "concurrent = 0", "key a: concurrent: must be greater than or equal to 1"),
    (KEY + "requests_per_minute = 1.5", "key a: requests_per_minute: must be a whole number"),
    (KEY + "may_see_routing = 1", "key a: may_see_routing: must be true or false"),
    (KEY + "[[keys]]\nid = 'b'\nhash = '{hash}'", "key a and key b have one hash"),
    (KEY + KEY.replace("{hash}", hash_key("b")), "two keys have the id a"),
    ("[admin]\nhash = '{hash}'\n" + KEY, "the admin and key a have one hash"),
    ("[admin]\nhash = 2030-01-01", "admin: hash: must be text, in quotes"),
    ("[[keys]]\nid = 2030-01-01\nhash = '{hash}'", "key number 1: id: must be text, in quotes"),
    ("not toml", "not TOML"),
    ("x = " + "[" * 5000, "not TOML"),
]


@pytest.mark.parametrize(("text", "told"), NO_POLICIES)
def test_a_policy_that_says_something_else_is_refused_in_plain_words(tmp_path, text, told):
    path = tmp_path / "policy.toml"
    path.write_text(text.replace("{hash}", hash_key("a")), "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_policy(path)
    assert caught.value.message.startswith(told)
    assert caught.value.where == str(path)
    assert "docs/formats.md" in caught.value.remedy


def test_a_policy_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot open.*name a TOML file"):
        read_policy(tmp_path / "policy.toml")

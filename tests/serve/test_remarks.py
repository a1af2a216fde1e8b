"""What an operator should know of a policy: at the start, and where it is read anew."""

from __future__ import annotations

from datetime import date

import pytest
from tests.serve.conftest import TERMS, policed, told_server
from tests.serve.engines import short

BODY = {"model": "release", "prompt": "w1 w2", "max_tokens": 1}
KEYS = {
    "quiet": {"experts": ["amy", "bob"]},
    "typo": {"experts": ["bob", "cat"], "purposes": ["reserch"]},
    "tied": {"bound": ["cat"], "purposes": ["care", "ads"]},
    "good": {"experts": ["bob"], "purposes": ["care"]},
    "any": {"experts": "all", "purposes": ["any"]},
    "alone": {},
    "lost": {"experts": ["eve", "amy"]},
}
BOB = "bob, whose terms allow care, research"
CAT = "cat, whose terms allow research"
REMARKS = [
    "key lost names eve, which is not in this release",
    f"key quiet, which may ask for nothing, can never use {BOB}",
    f"key typo, which may ask for reserch, can never use {BOB}; {CAT}",
    f"key tied, which may ask for care, ads, can never use {CAT}",
]


def test_experts_that_a_key_can_never_use_are_told(release_with_terms, tmp_path):
    with policed(release_with_terms, tmp_path, KEYS) as (live, secrets, policy, text):
        assert [line for line in live.said if line.startswith("key ")] == REMARKS
        # The oracle: what the server says to each key and each purpose that it may name.
        for key, fields in KEYS.items():
            says = fields.get("purposes", [])
            used = set()
            for purpose in (None, *(("care", "research") if says == ["any"] else says)):
                ask = BODY | {"moiety": {"purpose": purpose}}
                answer = live.post(key=secrets[key], json=ask)
                used |= set(answer.json()["moiety"]["experts"] if answer.is_success else [])
            wanted = fields.get("bound") or fields.get("experts", [])
            wanted = TERMS if wanted == "all" else [name for name in wanted if name in TERMS]
            told = "".join(line for line in REMARKS if f"key {key}, " in line)
            assert {name for name in wanted if f"{name}, whose" in told} == set(wanted) - used
        policy.write_text(text.replace("reserch", "research"))
        again = live.admin("POST", "/admin/reload", secrets["admin"]).json()
        assert again["remarks"] == REMARKS[:2] + REMARKS[3:]


def test_terms_that_have_ended_and_experts_that_have_left(release_with_terms, tmp_path):
    keys = {"app": {"experts": "all", "purposes": ["any"]}}
    with policed(release_with_terms, tmp_path, keys) as (live, *_):
        live.house.served._today = lambda: date(2030, 3, 1)
        why = "dan-b, whose terms ended on 2030-01-01"
        assert live.house.remarks() == [f"key app, which may ask for any, can never use {why}"]
        live.house.served.leave(["dan-b"])
        assert live.house.remarks() == []


@pytest.mark.parametrize("text", ["", "keys = []", f"[admin]\nhash = 'sha256:{0:064}'"])
def test_a_policy_without_keys_is_told(release_with_terms, tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    how = {"names": ("anchor", *TERMS), "policy": tmp_path / "policy.toml"}
    with told_server(release_with_terms, tmp_path, short, **how) as live:
        assert any("no [[keys]]: nobody can ask" in line for line in live.said)

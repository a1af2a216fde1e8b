"""Proxies, a tuned release and the way back, as commands."""

from __future__ import annotations

import pytest
from tests import tiny

SMALL = ("--set", "data.window_tokens=32", "--set", "batch.windows=4", "--steps", "2")


@pytest.fixture
def papers(tiny_world, tmp_path, moiety):
    made = {}
    for owner, signed in (("amy", True), ("bob", False)):
        text = tiny.write_text(tmp_path / f"{owner}.jsonl", seed=len(made) + 1)
        made[owner] = tmp_path / f"{owner}.json"
        key = ["--key", tiny_world.folder / f"{owner}.pem"] if signed else []
        words = ["--owner", owner, "--out", made[owner], "--documents", 20, *key, "--json"]
        done = moiety("proxies", tiny_world.anchor, text, *words)
        assert done.code == 0, done.err
        assert done.json["documents"] == 20
        assert "tells which public documents resemble your text" in done.err
        assert ("not signed" in done.err) == (not signed)
    return made


def test_from_proxies_to_a_tuned_release_and_back(tiny_world, tmp_path, moiety, papers):
    release, out = tiny_world.release("amy", "bob"), tmp_path / "tuned"
    named = [word for path in papers.values() for word in ("--proxies", path)]
    words = ["--anchor", tiny_world.anchor, *named, *SMALL, "--json", "--out"]
    done = moiety("tune-router", release, *words, out)
    assert done.code == 0, done.err
    assert done.json["strict"] is False
    assert done.json["steps"] == 2
    before, after = done.json["heldout"]
    assert after <= before
    assert f"{before:.4f} to {after:.4f} bits per byte" in done.out
    assert "bob's proxies are not signed" in done.json["flags"]

    told = moiety("verify", out, "--json").json
    assert (told["digest"], told["strict"]) == (done.json["digest"], False)
    assert "tuned together" in told["flags"][0]
    assert moiety("verify", release, "--json").json["strict"] is True

    again = moiety("tune-router", out, *words, tmp_path / "twice")
    assert again.code == 2
    assert "moiety untune" in again.err

    back = moiety("untune", out, "--out", tmp_path / "back", "--json")
    assert back.json["digest"] == done.json["roster_before"]
    assert moiety("untune", release, "--out", tmp_path / "no").code == 2


def test_proxies_can_be_verified(tiny_world, moiety, papers):
    amy, bob = ("--key", tiny_world.folder / "amy.pub"), ("--key", tiny_world.folder / "bob.pub")
    done = moiety("verify", papers["amy"], *amy, "--json")
    assert (done.code, done.json["kind"], done.json["owner"]) == (0, "proxies", "amy")
    assert done.json["documents"] == "20 documents"
    assert moiety("verify", papers["amy"], *bob).code == 2
    assert moiety("verify", papers["bob"], "--json").json["key"] is None
    assert moiety("verify", papers["bob"], *bob).code == 2


def test_an_owner_can_leave_a_tuned_release(tiny_world, tmp_path, moiety, papers):
    release, out = tiny_world.release("amy", "bob"), tmp_path / "tuned"
    words = ["--anchor", tiny_world.anchor, "--proxies", papers["amy"], "--out", out, *SMALL]
    assert moiety("tune-router", release, *words).code == 0
    bundle, key = tiny_world.bundles["bob"], tiny_world.folder / "bob.pem"
    moiety("order", "withdraw", bundle, "--key", key, "--out", tmp_path / "order.json")
    left = ["--order", tmp_path / "order.json", "--out", tmp_path / "after", "--json"]
    done = moiety("withdraw", out, "bob", *left)
    assert done.code == 0, done.err
    assert (
        done.json["roster_after"]
        == moiety("verify", tiny_world.release("amy"), "--json").json["digest"]
    )
    receipt = done.json["receipt"]
    assert moiety("verify", receipt, "--release", tmp_path / "after").code == 0

"""``serve`` and ``serve-key``: what cannot work is refused before anything is loaded."""

from __future__ import annotations

import pytest
from tests import makers

from moiety.bundle import signing
from moiety.serve.policy import read_policy

RELEASE = "the folder of a release, which 'moiety merge' makes of an anchor and bundles"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    from moiety.merge import merge

    folder = tmp_path_factory.mktemp("house")
    anchor = makers.make_anchor(folder / "anchor")
    merge(anchor, [makers.make_bundle(folder, anchor, "amy")], folder / "release")
    return folder / "release"


def test_a_folder_that_is_no_release_is_named_for_what_it_is(moiety, release, tmp_path):
    place = release.parent
    moiety("export", release, "--out", tmp_path / "plain")
    for folder, told in {
        place / "amy.expert": "this is an owner's bundle, not a release",
        place / "amy.run": "this is an owner's run, not a release",
        place / "anchor": "this is an anchor, not a release",
        tmp_path / "plain": "this is a plain checkpoint, not a release",
        tmp_path: "not a release",
        tmp_path / "nix": "no such folder",
    }.items():
        said = moiety("serve", folder)
        assert said.code == 2
        assert said.err.splitlines() == [
            f"error: {told}",
            f"  where:  {folder}",
            f"  remedy: name {RELEASE}",
        ]


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_there_is_not_is_refused(moiety, release, option, port):
    said = moiety("serve", release, option, port)
    assert said.code == 2
    assert f"Invalid value for '{option}'" in said.err


def test_a_key_for_receipts_is_looked_at_before_an_order_needs_it(moiety, release, tmp_path):
    signing.new_key(tmp_path / "key.pem")
    for key, more, told in (
        ("nix.pem", ["--admin-port", 0], "no key: cannot open"),
        ("key.pub", ["--admin-port", 0], "not a private key in PEM"),
        ("key.pem", [], "give --admin-port too"),
    ):
        said = moiety("serve", release, "--receipt-key", tmp_path / key, *more)
        assert (said.code, told in said.err) == (2, True), said.err
        assert "remedy:" in said.err
    assert not release.with_name("release.usage.sqlite").exists(), "nothing was begun"


def test_sizes_without_vllm_are_refused(moiety, release, tmp_path):
    said = moiety("serve", release, "--vllm-args", tmp_path / "engine.toml")
    assert (said.code, "it is for --engine vllm" in said.err) == (2, True)


@pytest.mark.parametrize("name", ["App One", "APP", "local", "-", "", "a" * 64, "a\nb"])
def test_no_key_is_made_that_a_policy_would_not_take(moiety, name):
    said = moiety("serve-key", "--", name)
    assert (said.code, said.out) == (2, "")
    assert "remedy: take another id" in said.err
    assert "the key" not in said.err


def test_what_serve_key_prints_is_a_policy(moiety, tmp_path):
    said = [moiety("serve-key", name, "--json") for name in ("admin", "app")]
    lines = [line for one in said for line in one.out.splitlines()[:-1]]
    (tmp_path / "policy.toml").write_text("\n".join(lines), "utf-8")
    policy = read_policy(tmp_path / "policy.toml")
    assert policy.admin_hash == said[0].json["hash"]
    assert policy.find(said[1].json["key"]).id == "app"
    assert policy.find(said[0].json["key"]) is None

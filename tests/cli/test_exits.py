"""Exit codes, and errors that say what, where and what to do, on stderr alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from tests import makers

from moiety.bundle import signing


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """An anchor, two bundles and a release, made without torch."""
    from moiety.merge import merge

    folder = tmp_path_factory.mktemp("house")
    anchor = makers.make_anchor(folder / "anchor")
    for seed, owner in enumerate(("amy", "bob"), start=1):
        makers.make_bundle(folder, anchor, owner, seed=seed)
    merge(anchor, [folder / "amy.expert", folder / "bob.expert"], folder / "release")
    return folder


def test_what_is_done_exits_0(moiety, house, tmp_path):
    assert moiety("keys", "new", "--out", tmp_path / "k.pem").code == 0
    for name in ("anchor", "amy.expert", "release"):
        assert moiety("verify", house / name).code == 0
    assert moiety("verify", house / "amy.expert", "--key", house / "amy.pub").code == 0


def refusals(house, tmp_path):
    rel, amy = house / "release", house / "amy.expert"
    return {
        "no such file or folder": ["verify", tmp_path / "nothing"],
        "not an anchor, a bundle or a release": ["verify", tmp_path],
        "only a receipt is about a release": ["verify", amy, "--release", rel],
        "unexpected extra argument": ["verify", amy, rel],
        "No such command 'marge'": ["marge"],
        "Missing option '--out'": ["merge", house / "anchor", amy],
        "Missing argument": ["merge"],
        "No such option: --speed": ["doctor", "--speed"],
        "No such option: --native": ["merge", house / "anchor", amy, "--out", "c", "--native"],
        "No such option: --routing": ["generate", rel, "--prompt", "a", "--routing", "token"],
        "Invalid value for '--top-k'": ["merge", "a", "b", "--out", "c", "--top-k", "many"],
        "exists already": ["merge", house / "anchor", amy, "--out", rel],
        "two bundles of amy": ["merge", house / "anchor", amy, amy, "--out", tmp_path / "x"],
        "no expert called 'eve'": ["export", rel, "--dense", "eve", "--out", tmp_path / "x"],
        "--experts and --dense exclude": [
            *("export", rel, "--experts", "amy", "--dense", "amy", "--out", tmp_path / "x"),
        ],
        "exclude each other": [
            "generate",
            rel,
            "--prompt",
            "a",
            "--experts",
            "a",
            "--without",
            "b",
        ],
        "not NAME=PATH": ["eval", rel, "--data", "public"],
        "not section.field=value": [
            "train",
            "a",
            "b",
            "--owner",
            "amy",
            "--out",
            "c",
            "--set",
            "x",
        ],
        "optim.speed": [
            "train",
            "a",
            "b",
            "--owner",
            "amy",
            "--out",
            "c",
            "--set",
            "optim.speed=1",
        ],
        "not an owner's name": ["train", "a", "b", "--owner", "Amy", "--out", tmp_path / "run"],
        "is in this release already": ["admit", rel, amy, "--out", tmp_path / "x"],
    }


def test_what_is_refused_exits_2_and_says_why_on_stderr_alone(moiety, house, tmp_path):
    for what, words in refusals(house, tmp_path).items():
        said = moiety(*words)
        assert said.code == 2, words
        assert what in " ".join(said.err.split()), said.err
        assert said.out == "", words
        assert "Traceback" not in said.err
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "run").exists()


def test_an_error_says_what_where_and_what_to_do(moiety, house, tmp_path):
    said = moiety("merge", house / "anchor", house / "amy.expert", "--out", house / "release")
    what, where, remedy = said.err.splitlines()
    assert what == "error: exists already"
    assert where == f"  where:  {house / 'release'}"
    assert remedy == "  remedy: name a new folder, or remove it"


def test_names_in_errors_are_not_read_as_markup(moiety, tmp_path):
    said = moiety("verify", tmp_path / "[bold]red[/bold]")
    assert "[bold]red[/bold]" in said.err


def test_a_byte_out_of_place_exits_2(moiety, house, tmp_path):
    bundle = tmp_path / "amy.expert"
    shutil.copytree(house / "amy.expert", bundle)
    weights = bundle / "expert.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert moiety("verify", bundle).code == 2
    assert moiety("merge", house / "anchor", bundle, "--out", tmp_path / "release").code == 2
    assert not (tmp_path / "release").exists()


def test_another_key_or_another_anchor_exits_2(moiety, house, tmp_path):
    assert moiety("verify", house / "amy.expert", "--key", house / "bob.pub").code == 2
    other = makers.make_anchor(tmp_path / "anchor", seed=9)
    assert moiety("verify", house / "amy.expert", "--anchor", other).code == 2
    assert moiety("verify", house / "amy.expert", "--anchor", house / "release").code == 0


def test_an_interruption_exits_130_and_says_so(moiety, monkeypatch, tmp_path):
    def interrupted(_path):
        raise KeyboardInterrupt("saved; go on with --resume")

    monkeypatch.setattr(signing, "new_key", interrupted)
    said = moiety("keys", "new", "--out", tmp_path / "k.pem")
    assert (said.code, said.out) == (130, "")
    assert said.err == "interrupted: saved; go on with --resume\n"


def test_our_own_bugs_are_not_dressed_up_as_refusals(moiety, monkeypatch, tmp_path):
    def broken(_path):
        raise ZeroDivisionError

    monkeypatch.setattr(signing, "new_key", broken)
    with pytest.raises(ZeroDivisionError):
        moiety("keys", "new", "--out", tmp_path / "k.pem")


def test_json_is_the_last_line_of_every_command_that_offers_it(moiety, house, tmp_path):
    place, out = tmp_path, {}
    order, receipt = place / "order.json", place / "receipt.json"
    amy = house / "amy.expert"
    lines = {
        "key": ["keys", "new", "--out", place / "k.pem"],
        "bundle": ["pack", house / "amy.run", "--key", house / "amy.pem", "--out", place / "b"],
        "verify": ["verify", amy],
        "merge": ["merge", house / "anchor", amy, "--out", place / "one"],
        "admit": ["admit", place / "one", house / "bob.expert", "--out", place / "two"],
        "order": ["order", "withdraw", amy, "--key", house / "amy.pem", "--out", order],
        "withdraw": [
            *("withdraw", place / "two", "amy", "--order", order, "--out", place / "three"),
            *("--key", place / "k.pem", "--receipt", receipt),
        ],
        "receipt": ["verify", receipt, "--release", place / "three"],
        "dense": ["export", place / "two", "--dense", "bob", "--out", place / "dense"],
        "plain": ["export", place / "two", "--experts", "bob", "--out", place / "plain"],
    }
    for name, words in lines.items():
        said = moiety(*words, "--json")
        assert said.code == 0, said.err
        out[name] = said.json
        assert said.out.count("\n{") == 1, "one JSON line"
    assert out["merge"]["experts"] == ["anchor", "amy"]
    assert out["admit"]["experts"] == ["anchor", "amy", "bob"]
    assert out["plain"]["experts"] == ["anchor", "bob"]
    assert out["dense"]["expert"] == "bob"
    assert out["withdraw"]["experts"] == ["anchor", "bob"]
    assert out["withdraw"]["roster_before"] == out["admit"]["digest"]
    assert out["receipt"]["roster_after"] == out["withdraw"]["roster_after"]
    assert out["verify"]["digest"] == out["bundle"]["digest"]
    assert json.loads((place / "three" / "roster.json").read_text())["strict"] is True


def test_machines_read_numbers_not_words(moiety, house):
    said = moiety("verify", house / "release", "--json")
    assert said.json["holds"] is True
    assert said.json["kind"] == "release"


def test_the_end_of_a_command_does_not_go_through_all_that_it_has_loaded(tmp_path):
    script = tmp_path / "ending.py"
    script.write_text(
        "import atexit, gc\n"
        "from moiety.cli import main\n"
        "atexit.register(lambda: print(len(gc.get_objects())))\n"
        "main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1000, "of some ten thousand"

"""``moiety train --epsilon``: from private text to a bundle that says what it promises."""

from __future__ import annotations

import json

import pytest
from tests import tiny
from tests.audit.made import PROMISE

from moiety.cli import run as moiety
from moiety.cli.training import _tell_privacy


def test_from_text_to_a_bundle_that_says_what_it_promises(tiny_anchor, tmp_path, capsys):
    texts = list(tiny.language(1, 60))
    lines = [json.dumps({"text": t, "patient": number % 30}) for number, t in enumerate(texts)]
    (tmp_path / "notes.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    words = ["train", str(tiny_anchor), str(tmp_path / "notes.jsonl"), "--owner", "amy"]
    words += ["--out", str(tmp_path / "run"), "--record-key", "patient", "--epsilon", "1"]
    words += ["--delta", "1e-3", "--tuning-runs", "2", "--json"]
    for setting in (*tiny.SETTINGS, "budget.tokens=512", "privacy.clip_norm=0.3"):
        words += ["--set", setting]
    assert moiety(words) == 0
    screen = capsys.readouterr().out
    told = json.loads(screen.splitlines()[-1])["privacy"]
    assert told["epsilon"] <= 1 < told["epsilon_rdp"]
    assert (told["delta"], told["tuning_runs"], told["clip_norm"]) == (1e-3, 2, 0.3)
    assert "all documents with one patient" in screen
    assert "bounds practically nothing" not in screen
    assert "no promise of privacy" not in screen

    key, bundle = str(tmp_path / "amy.pem"), str(tmp_path / "amy.expert")
    assert moiety(["keys", "new", "--out", key]) == 0
    assert moiety(["pack", str(tmp_path / "run"), "--key", key, "--out", bundle]) == 0
    capsys.readouterr()
    assert moiety(["verify", bundle, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["privacy"].startswith("Trained with differential privacy: epsilon 0.99")
    assert "2 earlier runs on the same text are counted" in shown["privacy"]
    assert "clip_norm 0.3" in shown["promised"]


@pytest.mark.parametrize(("epsilon", "little"), [(10.0, False), (10.01, True)])
def test_a_promise_that_bounds_nothing_is_called_that(capsys, epsilon, little):
    _tell_privacy(PROMISE.model_copy(update={"epsilon": epsilon}))
    assert ("bounds practically nothing" in capsys.readouterr().out) == little


@pytest.mark.parametrize("asked", [("--delta", "1e-5"), ("--tuning-runs", "3")], ids=lambda a: a[0])
def test_half_a_promise_is_refused_and_leaves_nothing(tiny_anchor, tmp_path, capsys, asked):
    text = tiny.write_text(tmp_path / "notes.jsonl", seed=1)
    words = ["train", str(tiny_anchor), str(text), "--owner", "amy", "--out", str(tmp_path / "run")]
    assert moiety([*words, *asked]) == 2
    error = capsys.readouterr().err
    assert f"{asked[0]} says nothing without --epsilon" in error
    assert "remedy: give --epsilon" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epsilon", ["inf", "nan", "0", "-3"])
def test_an_epsilon_that_is_none_is_refused_and_leaves_nothing(
    tiny_anchor, tmp_path, capsys, epsilon
):
    text = tiny.write_text(tmp_path / "notes.jsonl", seed=1)
    words = ["train", str(tiny_anchor), str(text), "--owner", "amy", "--out", str(tmp_path / "run")]
    assert moiety([*words, "--epsilon", epsilon]) == 2
    error = capsys.readouterr().err
    assert f"privacy.epsilon cannot be {epsilon}" in error
    assert "remedy: privacy.epsilon takes a number above 0, or none" in error
    assert not (tmp_path / "run").exists()


def test_a_delta_that_promises_nothing_is_refused_with_a_remedy(tiny_anchor, tmp_path, capsys):
    text = tiny.write_text(tmp_path / "notes.jsonl", seed=1)
    words = ["train", str(tiny_anchor), str(text), "--owner", "amy", "--out", str(tmp_path / "run")]
    words += ["--epsilon", "1", "--delta", "0.5"]
    for setting in tiny.SETTINGS:
        words += ["--set", setting]
    assert moiety(words) == 2
    error = capsys.readouterr().err
    assert "promises nothing" in error
    assert "choose at most" in error

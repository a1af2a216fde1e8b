"""``moiety train --canaries``: what the screen says of them, and what comes next."""

from __future__ import annotations

import json

import pytest
from tests import tiny

from moiety.audit.bounds import ceiling
from moiety.bundle import papers
from moiety.cli import run as moiety
from moiety.cli.training import FEW_CANARIES


def test_from_few_even_an_audit_that_is_always_right_shows_little():
    assert ceiling(FEW_CANARIES - 1, 0.0) < 1.705
    assert ceiling(FEW_CANARIES, 0.0) > 1.705
    assert ceiling(500, 0.0) > 4


@pytest.mark.parametrize(
    "asked", [["--canaries", "31"], ["--canaries", "32"], []], ids=["few", "some", "none"]
)
def test_what_was_planted_and_where_it_is_told(tiny_anchor, tmp_path, capsys, asked):
    text = tiny.write_text(tmp_path / "notes.jsonl", seed=1)
    before = text.read_bytes()
    words = ["train", str(tiny_anchor), str(text), "--owner", "amy", "--out", str(tmp_path / "run")]
    for setting in (*tiny.SETTINGS, "budget.tokens=512", "data.canary_tokens=8"):
        words += ["--set", setting]
    assert moiety([*words, *asked, "--json"]) == 0
    screen = capsys.readouterr()
    assert "no promise of privacy" in screen.out
    told = json.loads(screen.out.splitlines()[-1])["canaries"]
    path = tmp_path / "run" / "canaries.json"
    if asked:
        paper = papers.read_paper(papers.Canaries, path)
        assert told == {"drawn": int(asked[1]), "planted": sum(paper.planted)}
        assert f"{sum(paper.planted)} of {asked[1]} planted" in screen.out
        assert "canaries.json" in screen.out
        assert ("from so few canaries" in screen.err) == (asked[1] == "31")
        assert "moiety audit" in screen.out + screen.err
    else:
        assert told == {"drawn": 0, "planted": 0}
        assert not path.exists()
        assert "canar" not in screen.out.replace('"canaries"', "") + screen.err
    assert text.read_bytes() == before

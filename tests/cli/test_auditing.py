"""``moiety audit``: what the screen says, what is written, and how the command ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.audit import runs

from moiety.bundle import audits, papers

FEW = ("--documents", 4, "--samples", 2, "--tokens", 8, "--members", 8, "--no-control")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_anchor: Path) -> Path:
    """A folder with a run, its text, and two policies: one that nothing can pass, one lax."""
    folder = tmp_path_factory.mktemp("home")
    text = runs.write_notes(folder / "notes.jsonl", seed=1)
    runs.train(folder, tiny_anchor, text, "amy", f"data.canaries={runs.CANARIES}")
    limits = [
        name
        for name, field in audits.Policy.model_fields.items()
        if field.annotation is audits.Threshold
    ]
    for name, limit in (("strict", -1e6), ("lax", 1e6)):
        lines = [f"{measure} = {{warn = {limit}, fail = {limit}}}" for measure in limits]
        (folder / f"{name}.toml").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture
def audit(home, tiny_anchor, moiety, tmp_path):
    """Calls ``moiety audit`` on the run; words may follow."""

    def call(*words, subject="amy.run", key=True):
        usual = ("--anchor", tiny_anchor, "--data", home / "notes.jsonl", *FEW)
        record = ("--record-key", runs.KEY) if key else ()
        return moiety(
            "audit", home / subject, *usual, *record, "--out", tmp_path / "report", *words
        )

    return call


def test_a_warning_is_done_and_tells_what_comes_next(audit, home, moiety, tmp_path):
    said = audit("--policy", home / "lax.toml", "--json")
    assert said.code == 0
    assert said.json["verdict"] == "warn"
    assert said.json == json.loads((tmp_path / "report/report.json").read_bytes())
    papers.read_paper(audits.AuditReport, tmp_path / "report/report.json")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    charts = {"extraction.png", "membership.png", "exposure.png", "epsilon.png"}
    assert names == {"report.json", "report.html", *charts}
    assert "Verdict: warn" in said.out
    for title in ("Passages got back", "Who was in the text", "Canaries"):
        assert title in said.out
    assert "stays with you" in said.err
    assert "--accept-warnings" in said.err
    moiety("keys", "new", "--out", tmp_path / "amy.pem")
    packed = ("pack", home / "amy.run", "--key", tmp_path / "amy.pem", "--out", tmp_path / "b")
    required = ("--require-audit", tmp_path / "report")
    assert moiety(*packed, *required).code == 2
    assert moiety(*packed, *required, "--accept-warnings").code == 0


def test_a_failing_verdict_exits_1_and_the_report_is_there(audit, home, moiety, tmp_path):
    said = audit("--policy", home / "strict.toml", "--json")
    assert said.code == 1
    assert said.json["verdict"] == "fail"
    assert "Verdict: fail" in said.out
    assert "--epsilon" in said.err
    assert "Traceback" not in said.out + said.err
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_are_whole_on_a_narrow_screen(audit, home, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    said = audit("--policy", home / "lax.toml")
    assert "…" not in said.out
    assert max(map(len, said.out.splitlines())) <= columns


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        (("--seed", -1), True, "give at least 0"),
        (("--documents", 0), True, "give at least 1"),
        (("--heldout", "nowhere.jsonl"), True, "no such file or folder"),
        (("--policy", "nowhere.toml"), True, "nowhere.toml"),
        ((), False, "give patient"),
        (("--device", "abacus"), True, "abacus"),
        (("more.jsonl",), True, "more.jsonl"),
    ],
)
def test_what_is_refused_exits_2_and_writes_nothing(audit, tmp_path, words, key, told):
    said = audit(*words, key=key)
    assert said.code == 2
    assert told in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "report").exists()
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == []


def test_a_report_is_not_written_over(audit, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report/old.txt").write_text("mine")
    said = audit()
    assert said.code == 2
    assert "exists already" in said.err
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["old.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_leaves_no_weights_behind(home, tiny_anchor, tmp_path, number):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = [sys.executable, "-m", "moiety", "audit", home / "amy.run", "--anchor", tiny_anchor]
    words += [
        "--data",
        home / "notes.jsonl",
        "--record-key",
        runs.KEY,
        "--out",
        tmp_path / "report",
    ]
    words += ["--samples", "64", "--tokens", "32"]  # minutes, if nobody stops it
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(scratch.glob("moiety-audit-*/release")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert list(scratch.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def test_a_subject_that_is_none(audit, home):
    said = audit(subject="notes.jsonl")
    assert said.code == 2
    assert "neither a run" in said.err

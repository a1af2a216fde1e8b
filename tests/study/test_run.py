"""A whole study: carried out, stopped, gone on with, and refused, by the command."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.study.conftest import METHODS, PLAN, study, text_table, write_part

from moiety.errors import StateError
from moiety.study import Study, read_plan
from moiety.study.methods import METHODS as ALL
from moiety.study.methods import dense_models, rows
from moiety.study.pieces import all_pieces, unfinished, wanted_cells
from moiety.study.run import carry_out

QUICK = ("anchor", "dense-whole")


def report_of(out):
    """A study's report without what no two runs share."""
    return {**json.loads((out / "report/report.json").read_bytes()), "seconds": 0}


def copied(done, tmp_path):
    return shutil.copytree(done, tmp_path / "copy")


@pytest.fixture
def planned(desk):
    return read_plan(desk / "study.toml")


def test_a_cell_that_was_lost_is_made_again_and_the_report_is_the_same(desk, done, tmp_path):
    out = copied(done, tmp_path)
    before = report_of(out)
    lost = [
        out / "seed-0/scores/moiety-k1/amy.safetensors",
        out / "seed-0/baselines/recipe/bob",
        out / "seed-0/scores/recipe/public.safetensors",
        out / "report",
    ]
    for path in lost:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert study(desk, out) == 0
    assert report_of(out) == before
    assert all(path.exists() for path in lost)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    redone = (out / "pieces.jsonl").read_text().splitlines()[-3:]
    names = {json.loads(line)["piece"] for line in redone}
    assert names == {"seed-0/recipe/bob", "seed-0/score-recipe", "seed-0/score-release"}


def test_scores_that_stand_do_not_ask_for_their_models(desk, done, tmp_path):
    out = copied(done, tmp_path)
    before = report_of(out)
    shutil.rmtree(out / "seed-0/runs")
    shutil.rmtree(out / "seed-0/release")
    shutil.rmtree(out / "seed-0/baselines")
    assert study(desk, out) == 0
    after = report_of(out)
    for row, old in zip(after["rows"], before["rows"], strict=True):
        assert {**row, "cost": None} == {**old, "cost": None}
        assert (row["cost"] is None) == (row["name"] not in ("anchor",))


def test_the_report_says_what_the_study_asked_for(done):
    report = report_of(done)
    methods = {row["method"] for row in report["rows"]}
    assert methods == set(METHODS)
    assert [text["name"] for text in report["texts"]] == ["public", "amy", "bob"]
    rows_by_name = {row["name"]: row for row in report["rows"]}
    assert set(rows_by_name) >= {"moiety-k1", "moiety-k3"}
    assert rows_by_name["oracle"]["gap_closed"]["value"] == pytest.approx(1)
    assert "public" not in rows_by_name["removal"]["bits_per_byte"]
    assert set(report["removal"]) == {"amy", "bob"}
    costs = {name: row["cost"] for name, row in rows_by_name.items()}
    # Fewer experts run for less, all are kept; every pair's training is in both.
    assert (
        costs["moiety-k1"]["inference_flops_per_token"]
        < costs["moiety-k3"]["inference_flops_per_token"]
        < costs["btm-all"]["inference_flops_per_token"]
    )
    assert costs["moiety-k1"]["parameters"] == costs["moiety-k3"]["parameters"]
    assert costs["moiety-k1"]["training_flops"] == costs["btm-pairs"]["training_flops"] > 0
    assert costs["removal"] is None


def test_json_is_the_last_line(desk, done, capsys):
    assert study(desk, done, "--json") == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["format"] == "moiety.study/1"
    assert line["rows"]["anchor"]["gap_closed"]["value"] == 0


def test_stopped_and_gone_on_with(desk, tmp_path):
    out, plan = tmp_path / "out", desk / "study.toml"
    words = [sys.executable, "-m", "moiety", "study", plan, "--out", out]
    words += ["--methods", ",".join(QUICK)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("texts/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert not (out / "report").exists()
    assert study(desk, out, methods=QUICK) == 0
    assert {row["method"] for row in report_of(out)["rows"]} == set(QUICK)


def test_what_fails_is_named_and_holds_up_only_what_needs_it(desk, tmp_path, capsys):
    text = (desk / "study.toml").read_text().replace('"anchor"', f'"{desk / "anchor"}"')
    (tmp_path / "amy.jsonl").write_text('{"id": "x", "word": "no text"}\n')
    text = text.replace("seeds", f'data = "{desk}"\nseeds', 1)
    text = text.replace("amy-train.jsonl", str(tmp_path / "amy.jsonl"))
    (tmp_path / "study.toml").write_text(text)
    assert study(tmp_path, tmp_path / "out", methods=QUICK) == 2
    said = capsys.readouterr().err
    assert 'field "text" is missing' in said
    assert "seed-0/dense-whole/amy" in said
    cells = tmp_path / "out/seed-0/scores"
    assert (cells / "dense-whole-bob/public.safetensors").exists()
    assert not (cells / "dense-whole-amy").exists()


def test_another_study_in_the_same_folder_is_refused(desk, done, tmp_path, capsys):
    text = (desk / "study.toml").read_text().replace("5e-3", "6e-3")
    text = text.replace("seeds", f'data = "{desk}"\nseeds', 1)
    (tmp_path / "study.toml").write_text(text.replace('"anchor"', f'"{desk / "anchor"}"'))
    assert study(tmp_path, done) == 2
    assert "another study lies here" in capsys.readouterr().err


def test_two_at_work_in_one_folder_are_one_too_many(planned, done, tmp_path):
    asked = Study(planned.choose(METHODS, None), copied(done, tmp_path))
    seen = []

    def watch(*_state):
        with pytest.raises(StateError, match="a study is at work here"):
            carry_out(asked)
        seen.append(True)

    asked.cell(0, "anchor", "amy").unlink()
    carry_out(asked, watch)
    assert seen


def test_pieces_come_after_what_they_need_and_every_method_has_its_own(planned, tmp_path):
    everything = Study(planned.choose(tuple(ALL), (0, 1)), tmp_path / "out")
    pieces = all_pieces(everything)
    order = [piece.name for piece in unfinished(pieces)]
    for place, name in enumerate(order):
        assert set(pieces[name].needs) - {"anchor", "choose"} <= set(order[:place]), name
    # The anchor stands and nobody's files are shared, so all else is to be done.
    assert set(order) == set(pieces) - {"anchor", "choose"}
    wanted = {cell for cells in wanted_cells(everything).values() for cell in cells}
    for row in rows(tuple(ALL), everything.plan.owners, everything.plan.top_ks()):
        for text in everything.plan.texts:
            assert {(model, text) for model in row.models(text)} <= wanted
            if row.name == "soup-weighted":
                names = dense_models(everything.plan.owners)
                assert {(model, text) for model in names} <= wanted
    leaves = [path for piece in pieces.values() for path in piece.leaves]
    assert len(leaves) == len(set(leaves))


@pytest.mark.slow
def test_every_method_from_a_preset_with_owners_who_share_files_under_two_seeds(tmp_path):
    """Trains the anchor, too, and chooses documents; joint training costs what it was told."""
    write_part(tmp_path / "public-train.jsonl", 0, 0, 60)
    write_part(tmp_path / "public-valid.jsonl", 0, 60, 10)
    write_part(tmp_path / "public-test.jsonl", 0, 70, 20)
    for part, first, count in (("train", 0, 60), ("valid", 60, 10), ("test", 70, 20)):
        lines = []
        for seed, owner in ((1, "amy"), (2, "bob")):
            write_part(tmp_path / "x.jsonl", seed, first, count, prefix=f"{owner}/")
            lines.append((tmp_path / "x.jsonl").read_text())
        (tmp_path / f"all-{part}.jsonl").write_text("".join(lines))
    shared = text_table("x").replace("x-", "all-")
    text = PLAN.replace('folder = "anchor"', 'preset = "tiny"\ntokens = 16384').replace(
        "[0]", "[0, 1]"
    )
    text = text.replace("[train.data]", "[anchor.train.data]\nwindow_tokens = 64\n[train.data]")
    for owner in ("amy", "bob"):
        text += shared.replace("owners.x", f"owners.{owner}") + f'sources = ["{owner}"]\n'
    (tmp_path / "study.toml").write_text(text + text_table("public"))
    assert study(tmp_path, tmp_path / "out", methods=tuple(ALL)) == 0
    rows_by_name = {row["name"]: row for row in report_of(tmp_path / "out")["rows"]}
    assert {row["method"] for row in rows_by_name.values()} == set(ALL)
    assert all(len(row["mean"]["by_seed"]) == 2 for row in rows_by_name.values() if row["mean"])
    flops = {
        name: row["cost"] and row["cost"]["training_flops"] for name, row in rows_by_name.items()
    }
    # Steps are whole, so what is trained is at most a step away from what was asked for.
    for once in ("joint-1x", "joint-experts"):
        assert flops[once] == pytest.approx(flops["moiety-k1"], rel=0.15)
    assert flops["joint-2x"] == pytest.approx(2 * flops["moiety-k1"], rel=0.15)

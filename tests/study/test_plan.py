"""A plan says what it means, or is refused with the place and a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.study.conftest import PLAN, text_table

from moiety.data import Skipped
from moiety.errors import ConfigError, DataError
from moiety.study import Study, read_plan
from moiety.study.methods import METHODS
from moiety.study.places import choose_documents
from moiety.study.plan import Plan, check_texts

GOOD = PLAN + text_table("public") + text_table("amy")
REPOSITORY = Path(__file__).resolve().parents[2]


def read(folder: Path, text: str) -> Plan:
    path = folder / "study.toml"
    path.write_text(text, "utf-8")
    return read_plan(path)


BAD = {
    "not TOML": (GOOD + "[owners", "cannot read the study"),
    "unknown key": ("colour = 1\n" + GOOD, "colour: no such key"),
    "unknown key of an owner": (GOOD + 'weight = "1"\n', "owners.amy.weight: no such key"),
    "unknown key of the anchor": (GOOD.replace('folder = "anchor"', "size = 3"), "anchor.size"),
    "unknown preset": (GOOD.replace('folder = "anchor"', 'preset = "huge"'), "anchor.preset"),
    "misspelt key": (GOOD.replace("owner_tokens", "owner_token"), "owner_token: no such key"),
    "misspelt text": (GOOD.replace('test = "amy', 'tset = "amy'), "owners.amy.tset: no such key"),
    "text of another kind": (GOOD.replace('"amy-test.jsonl"', "3"), "owners.amy.test: must be"),
    "unknown setting": (
        GOOD.replace("windows = 2", "window = 2"),
        "train.batch.window: no such setting",
    ),
    "unknown setting of the anchor": (
        GOOD.replace("[train.batch]", "[anchor.train]\nspeed = 1\n[train.batch]"),
        "anchor.train.speed: no such setting",
    ),
    "bad setting": (GOOD.replace("windows = 2", "windows = 0"), "train.batch.windows cannot be 0"),
    "unknown method": ('methods = ["magic"]\n' + GOOD, "no such method: magic"),
    "no method": ("methods = []\n" + GOOD, "methods"),
    "method twice": ('methods = ["anchor", "anchor"]\n' + GOOD, "named twice"),
    "seed twice": (GOOD.replace("seeds = [0]", "seeds = [3, 3]"), "named twice"),
    "seed below zero": (GOOD.replace("seeds = [0]", "seeds = [-1]"), "seeds.0"),
    "no tokens": (GOOD.replace("owner_tokens = 1536\n", ""), "owner_tokens"),
    "too few tokens": (GOOD.replace("1536", "0"), "owner_tokens"),
    "no owner": (PLAN + text_table("public"), "owners"),
    "a reserved name": (GOOD.replace("owners.amy", "owners.anchor"), "has a meaning of its own"),
    "a path for a name": (GOOD.replace("owners.amy", 'owners."../a"'), "lower-case letters"),
    "no test text": (GOOD.replace('test = "amy-test.jsonl"\n', ""), "owners.amy.test"),
    "public text of sources": (
        PLAN + text_table("public") + 'sources = ["a"]\n' + text_table("amy"),
        "the public text is taken whole",
    ),
}


@pytest.mark.parametrize(("text", "fault"), BAD.values(), ids=BAD)
def test_a_bad_plan_is_refused_and_the_fault_is_told(tmp_path, text, fault):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert fault in str(caught.value)
    assert caught.value.where


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("colour = 1\n" + GOOD, "a study has: anchor, btx_tokens, data,"),
        (GOOD + "weight = 1\n", "a text has: sources, test, train, valid"),
        (GOOD.replace("folder", "fold"), "an anchor has: folder, preset, seed, tokens, train"),
    ],
)
def test_the_keys_there_are_in_that_table_are_told(tmp_path, text, keys):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert caught.value.remedy.startswith(keys)
    assert caught.value.where == str(tmp_path / "study.toml")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\0" * 99, b"a = [" * 2000, b"seeds = 1e999"])
def test_hostile_bytes_are_refused_as_settings(tmp_path, data):
    (tmp_path / "study.toml").write_bytes(data)
    with pytest.raises(ConfigError):
        read_plan(tmp_path / "study.toml")


def test_a_plan_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the study"):
        read_plan(tmp_path / "none.toml")


def test_paths_are_relative_to_the_file_and_its_data_line(tmp_path):
    plan = read(tmp_path, 'data = "texts"\n' + GOOD)
    assert plan.sources("amy", "test") == [str(tmp_path / "texts" / "amy-test.jsonl")]
    assert Study(plan, tmp_path / "out").anchor == tmp_path / "anchor"
    absolute = read(tmp_path, GOOD.replace("amy-test.jsonl", str(tmp_path / "elsewhere.jsonl")))
    assert absolute.sources("amy", "test") == [str(tmp_path / "elsewhere.jsonl")]
    hub = read(tmp_path, GOOD.replace("amy-test.jsonl", "hf:some/set@test"))
    assert hub.sources("amy", "test") == ["hf:some/set@test"]


def test_a_text_that_is_missing_is_bad_data_and_named(desk, tmp_path):
    plan = read(tmp_path, f'data = "{desk}"\n{GOOD}'.replace("amy-valid", "amy-lost"))
    with pytest.raises(DataError) as caught:
        check_texts(plan)
    assert caught.value.where == str(desk / "amy-lost.jsonl")
    assert "1 of 6" in str(caught.value)


def test_settings_go_through_the_trainings_own_reader(tmp_path):
    config = read(tmp_path, GOOD).config
    assert (config.batch.windows, config.data.window_tokens) == (2, 64)
    assert (config.budget.tokens, config.compute.compile) == (1536, "off")


def test_another_process_reads_the_same_plan(tmp_path):
    plan = read(tmp_path, GOOD).choose(("anchor", "moiety"), (4,))
    again = Plan.from_json(plan.to_json())
    assert again.paper == plan.paper
    assert again.sources("amy", "train") == plan.sources("amy", "train")
    assert (plan.paper.methods, plan.paper.seeds) == (("anchor", "moiety"), (4,))


def test_only_methods_seeds_and_the_like_may_change_between_two_starts(tmp_path):
    plan = read(tmp_path, GOOD)
    assert plan.choose(("anchor",), (1, 2)).identity() == plan.identity()
    assert read(tmp_path, GOOD.replace("jobs = 2", "jobs = 1")).identity() == plan.identity()
    assert read(tmp_path, GOOD.replace("5e-3", "6e-3")).identity() != plan.identity()
    with pytest.raises(ConfigError, match="no such method: all"):
        plan.choose(("all",), None)


def test_no_more_experts_run_than_there_are(tmp_path):
    assert read(tmp_path, GOOD).top_ks() == (1, 2)
    assert read(tmp_path, GOOD).trained_top_k == 2
    assert read(tmp_path, "trained_top_k = 1\n" + GOOD).trained_top_k == 1


def test_an_owners_sources_are_beginnings_of_ids_up_to_a_border(tmp_path):
    names = ["a/1", "a#2", "a", "ab/3", "c/a/4", "d/e/5", "d/ef/6"]
    lines = [json.dumps({"id": name, "text": f"text {name}"}) for name in names]
    for part in ("train", "valid", "test"):
        (tmp_path / f"amy-{part}.jsonl").write_text("\n".join(lines) + "\n")
    study = Study(read(tmp_path, GOOD + 'sources = ["a", "d/e"]\n'), tmp_path / "out")
    choose_documents(study, "amy")
    texts = [found.text for found in study.sources("amy", "valid").documents(Skipped())]
    assert texts == ["text a/1", "text a#2", "text a", "text d/e/5"]


def test_an_owner_without_a_document_is_bad_data(tmp_path):
    (tmp_path / "amy-train.jsonl").write_text('{"id": "x", "text": "y"}\n')
    study = Study(read(tmp_path, GOOD + 'sources = ["a"]\n'), tmp_path / "out")
    with pytest.raises(DataError, match="no document of amy begins with a"):
        choose_documents(study, "amy")
    assert not study.chosen("amy").exists()


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "studies").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_studies_that_come_with_us_can_be_read(path):
    plan = read_plan(path)
    assert plan.paper.name == path.stem
    assert set(plan.paper.methods) <= set(METHODS)
    assert plan.paper.data == "../../shared/data"

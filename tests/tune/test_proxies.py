"""Proxies are the public documents like one's own, and their paper tells no more than that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny
from tests.tune.worlds import SEEDS, public_digests

from moiety.bundle import anchors, orders, signing
from moiety.data import Sources
from moiety.errors import ConfigError, DataError, IntegrityError, StateError
from moiety.tune import ProxiesPlan, choose_proxies
from moiety.tune.proxies import accuracy_range


@pytest.fixture
def plan(tune_world, tmp_path):
    sources = Sources([str(tune_world.text("amy"))])
    return ProxiesPlan(tune_world.anchor, sources, "amy", tmp_path / "p.json", documents=30)


@pytest.mark.parametrize("owner", SEEDS)
def test_those_in_the_owners_language_are_chosen(tune_world, owner):
    assert tune_world.named(owner) <= public_digests(SEEDS[owner])


def test_the_paper_is_sorted_signed_and_of_this_anchor(tune_world):
    found = orders.verify_proxies(tune_world.proxies("amy"))
    paper = found.proxies
    assert found.key == signing.load_public(tune_world.key("amy").with_suffix(".pub"))
    assert paper.anchor == anchors.open_facts(tune_world.anchor).digest
    assert (paper.owner, paper.sample_documents, len(paper.documents)) == ("amy", 80, 30)
    assert list(paper.documents) == sorted(paper.documents)


def test_no_word_of_the_text_and_no_exact_figure_is_in_the_paper(tune_world, plan):
    done = choose_proxies(plan)
    told = plan.out.read_text("utf-8")
    assert set(json.loads(told)) == {
        *("format", "owner", "anchor", "sample_documents", "documents", "accuracy")
    }
    own = [json.loads(line)["text"] for line in tune_world.text("amy").read_text().splitlines()]
    assert not any(word in told for text in own for word in text.split() if len(word) > 3)
    assert str(done.accuracy) not in told


def test_the_same_text_in_other_files_gives_the_same_paper(plan, tmp_path):
    first = choose_proxies(plan)
    lines = Path(plan.sources.paths[0]).read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join(lines[20:]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[:20]) + "\n")
    parts = Sources([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    again = choose_proxies(replace(plan, sources=parts, out=tmp_path / "q.json"))
    assert (tmp_path / "q.json").read_bytes() == plan.out.read_bytes()
    assert again.digest == first.digest


def test_how_many_does_not_depend_on_the_text(plan, tmp_path):
    counts = []
    for seed in (0, 5, 9):
        path = tiny.write_text(tmp_path / f"{seed}.jsonl", seed, documents=20 + seed)
        sources = Sources([str(path)])
        done = choose_proxies(
            replace(plan, sources=sources, documents=None, out=tmp_path / path.stem)
        )
        counts.append(len(done.paper.documents))
    assert counts == [40, 40, 40]


@pytest.mark.parametrize(
    ("accuracy", "told"),
    [
        (0.0, "under 60 %"),
        (0.5999, "under 60 %"),
        (0.6, "60-75 %"),
        (0.75, "75-90 %"),
        (0.9, "over 90 %"),
        (1.0, "over 90 %"),
    ],
)
def test_an_accuracy_is_told_roughly(accuracy, told):
    assert accuracy_range(accuracy) == told


@pytest.mark.parametrize("documents", [-1, 0, 1, 81, 10**9])
def test_a_number_that_does_not_fit_is_refused(plan, documents):
    with pytest.raises(ConfigError, match="public documents"):
        choose_proxies(replace(plan, documents=documents))
    assert not plan.out.exists()


def test_what_cannot_be_is_refused(plan, tmp_path):
    with pytest.raises(ConfigError, match="not an owner's name"):
        choose_proxies(replace(plan, owner="Amy B."))
    with pytest.raises(DataError):
        choose_proxies(replace(plan, sources=Sources([str(tmp_path / "nothing.jsonl")])))
    (tmp_path / "one.jsonl").write_text('{"text": "ba ba"}\n')
    with pytest.raises(DataError, match="too few records"):
        choose_proxies(replace(plan, sources=Sources([str(tmp_path / "one.jsonl")])))
    plan.out.write_text("mine")
    with pytest.raises(StateError, match="exists already"):
        choose_proxies(plan)


def test_another_sample_than_the_papers_is_refused(plan, tune_world, tmp_path):
    import shutil

    anchor = shutil.copytree(tune_world.anchor, tmp_path / "anchor")
    sample = anchor / "public" / "sample.jsonl.gz"
    data = bytearray(sample.read_bytes())
    data[-1] ^= 1
    sample.write_bytes(data)
    with pytest.raises(IntegrityError, match="not the file"):
        choose_proxies(replace(plan, anchor=anchor))

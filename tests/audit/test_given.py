"""A run is audited against the text it was trained on, and against no other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tests.audit import runs
from tests.audit.runs import Homes, refused
from tests.makers import is_heldout

from moiety.audit import audit
from moiety.audit.auditing import _Attack
from moiety.audit.subjects import open_subject
from moiety.data import load_tokenizer
from moiety.errors import ConfigError, StateError
from moiety.files import canonical_json


def altered(homes: Homes, owner: str, change: str, to: Path) -> Path:
    """The owner's text with one thing different; every line of 'other' is of another text."""
    lines = [json.loads(line) for line in homes.text(owner).read_text().splitlines()]
    aside = [is_heldout(line[runs.KEY], runs.FRACTION) for line in lines]
    member, stranger = aside.index(False), aside.index(True)
    if change == "swapped":
        other = (homes.folder / "other.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in other]
    elif change == "one more":
        lines.append({"text": "one more note of nobody", runs.KEY: "p0"})
    elif change == "one less":
        del lines[member]
    elif change == "twice":
        lines[member]["text"] = lines[member + 1]["text"]
    else:
        note = lines[member if change == "a member's" else stranger]
        note["text"] += " also"
    to.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return to


@pytest.mark.parametrize(
    ("change", "strange", "missing"),
    [
        ("swapped", 80, 80),
        ("one more", 1, 0),
        ("one less", 0, 1),
        ("twice", 1, 1),
        ("a member's", 1, 1),
        ("a stranger's", 1, 1),
    ],
)
@pytest.mark.parametrize("owner", ["amy", "bob"], ids=["kept aside", "judged on other text"])
def test_text_that_is_not_the_runs_is_refused(homes, tmp_path, owner, change, strange, missing):
    text = altered(homes, owner, change, tmp_path / "notes.jsonl")
    plan = runs.plan(homes.run(owner), text, homes.anchor)
    other = runs.write_notes(tmp_path / "strangers.jsonl", seed=4)
    words = f"{strange} are none of the run's, and {missing} of the run's own are not among them"
    remedy = str(homes.text(owner))
    for nonmembers in {"amy": [None, runs.notes(other)], "bob": [runs.notes(other)]}[owner]:
        refused(ConfigError, words, remedy, dataclasses.replace(plan, nonmembers=nonmembers))


def test_the_order_and_the_files_of_the_text_do_not_matter(homes, tmp_path, of_run):
    lines = homes.text("amy").read_text().splitlines(keepends=True)
    for name, part in (("b", lines[:30]), ("a", lines[30:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(reversed(part)), "utf-8")
    plan = runs.plan(homes.run("amy"), tmp_path, homes.anchor, documents=2)
    assert audit(plan).membership == of_run.membership


@pytest.mark.parametrize("gone", ["text", "text/own", "text/own/train", "text/own/heldout"])
def test_a_run_whose_text_was_deleted_is_told(homes, tmp_path, gone):
    run = shutil.copytree(homes.run("amy"), tmp_path / "run")
    shutil.rmtree(run / gone)
    plan = runs.plan(run, homes.text("amy"), homes.anchor)
    refused(StateError, "no longer in its folder", "put it back", plan)


def test_canaries_whose_coins_were_turned_are_refused(homes, tmp_path):
    for turn in ([0], [1], range(runs.CANARIES)):
        run = shutil.copytree(homes.run("amy"), tmp_path / f"run{len(turn)}{turn[0]}")
        fields = json.loads((run / "canaries.json").read_bytes())
        for coin in turn:
            fields["planted"][coin] = not fields["planted"][coin]
        (run / "canaries.json").write_bytes(canonical_json(fields))
        plan = runs.plan(run, homes.text("amy"), homes.anchor)
        refused(StateError, "canaries are not those", "canaries.json back", plan)


def test_a_record_that_was_moved_to_the_empty_side_is_no_member(homes, tmp_path):
    """With few records all may hash to one side; training then moves the nearest to the border."""
    text = runs.write_notes(tmp_path / "notes.jsonl", seed=5, documents=40, patients=8)
    names = [f"p{n}" for n in range(8)]
    fraction = min(map(_hashed, names)) / 2
    assert not any(is_heldout(name, fraction) for name in names)
    run = runs.train(tmp_path, homes.anchor, text, "cat", f"data.heldout_fraction={fraction}")
    plan = runs.plan(run, text, homes.anchor)
    with open_subject(run, homes.anchor, None) as subject:
        attack = _Attack(plan, subject, None)
    lines = [json.loads(line) for line in text.read_text().splitlines()]
    nearest = min(names, key=_hashed)
    assert attack.text.aside.tolist() == [line[runs.KEY] == nearest for line in lines]


def _hashed(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64


def test_what_was_kept_aside_and_trained_on_too_is_no_stranger(homes, tmp_path):
    note = "ba bado keli mu ra " * 6
    aside = next(n for n in range(999) if is_heldout(f"p{n}", runs.FRACTION))
    lines = [
        json.loads(line)
        for line in homes.text("amy").read_text().splitlines()
        if not is_heldout(json.loads(line)[runs.KEY], runs.FRACTION)
    ]
    lines += [{"text": note, runs.KEY: f"p{aside}"}, {"text": note, runs.KEY: lines[0][runs.KEY]}]
    text = tmp_path / "notes.jsonl"
    text.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    run = runs.train(tmp_path, homes.anchor, text, "dan")
    plan = runs.plan(run, text, homes.anchor)
    refused(ConfigError, "all that the run kept aside was trained on too", "not trained on", plan)


def test_strangers_are_compared_with_every_member_not_with_those_drawn(homes, tmp_path):
    """The same text under other records' names: of 4 drawn of 80 hardly one is drawn twice."""
    lines = [json.loads(line) for line in homes.text("amy").read_text().splitlines()]
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(
        "".join(json.dumps(line | {runs.KEY: f"x{n}"}) + "\n" for n, line in enumerate(lines))
    )
    for subject in ("amy.run", "amy.expert"):
        plan = runs.plan(homes.folder / subject, homes.text("amy"), homes.anchor, num_members=4)
        plan = dataclasses.replace(plan, nonmembers=runs.notes(renamed))
        refused(ConfigError, "of 80 documents that are to be strangers", "not trained on", plan)


def test_so_are_strangers_of_whom_few_were_drawn(homes, tmp_path):
    """One stranger of 200 new notes hides among the text 20 of the members' own."""
    known = [json.loads(line) for line in homes.text("amy").read_text().splitlines()][:20]
    known = [line | {runs.KEY: f"x{n}"} for n, line in enumerate(known)]
    new = runs.write_notes(tmp_path / "new.jsonl", seed=7, documents=200, patients=1)
    with new.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in known))
    plan = runs.plan(homes.bundle("amy"), homes.text("amy"), homes.anchor, num_members=11)
    plan = dataclasses.replace(plan, nonmembers=runs.notes(new))
    # Of the documents 9 % are members, under what may be; of the 21 records all but one.
    refused(ConfigError, "of 21 documents that are to be strangers", "not trained on", plan)


def test_documents_too_short_to_be_tried_are_counted(homes, tmp_path):
    """The oracle tokenises every document and counts."""
    encode = load_tokenizer(homes.anchor)[0].encode
    parts = {}
    for name, seed in (("members", 8), ("strangers", 9)):
        parts[name] = runs.write_notes(tmp_path / f"{name}.jsonl", seed, documents=30)
        with parts[name].open("a") as file:
            for at in range(60):
                short = {"text": f"{name} {at} " + "ba " * (at % 40), runs.KEY: f"s{at}"}
                file.write(json.dumps(short) + "\n")
    plan = runs.plan(homes.bundle("amy"), parts["members"], homes.anchor)
    told = audit(dataclasses.replace(plan, nonmembers=runs.notes(parts["strangers"]))).settings
    sizes = {
        name: [
            len(encode(json.loads(line)["text"], add_special_tokens=False).ids)
            for line in path.read_text().splitlines()
        ]
        for name, path in parts.items()
    }
    assert told.text_documents == told.other_documents == 90
    assert told.short_documents == sum(n < 32 + 8 for n in sizes["members"])
    assert told.short_members == sum(n < 16 for n in sizes["members"])
    assert told.short_nonmembers == sum(n < 16 for n in sizes["strangers"])
    assert 0 < told.short_members < told.short_documents < 90


def test_of_a_run_short_documents_are_those_it_was_trained_on(homes, of_run):
    lines = [json.loads(line) for line in homes.text("amy").read_text().splitlines()]
    aside = sum(is_heldout(line[runs.KEY], runs.FRACTION) for line in lines)
    settings = of_run.settings
    assert (settings.text_documents, settings.other_documents) == (len(lines) - aside, aside)

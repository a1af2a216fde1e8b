"""An audit from beginning to end, on runs that were trained and on what is made of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit import runs
from tests.audit.runs import Homes, refused
from tests.makers import is_heldout

from moiety.audit import audit, auditing, pages
from moiety.audit.auditing import _Attack
from moiety.audit.subjects import open_subject
from moiety.bundle import audits, pack, papers
from moiety.errors import (
    ConfigError,
    DataError,
    FormatError,
    IntegrityError,
    PolicyError,
    StateError,
    TrustError,
)
from moiety.files import canonical_json, digest_bytes

THRESHOLDS = [
    name
    for name, field in audits.Policy.model_fields.items()
    if field.annotation is audits.Threshold
]


def of_release(homes: Homes, release: str, owner: str | None) -> audits.AuditReport:
    """Through a release, against amy's text whoever is asked about."""
    return audit(
        runs.plan(
            homes.folder / release,
            homes.text("amy"),
            owner=owner,
            nonmembers=runs.notes(homes.folder / "other.jsonl"),
            canaries=homes.run("amy") / "canaries.json" if owner == "amy" else None,
        )
    )


@pytest.fixture(scope="module")
def both(homes: Homes) -> audits.AuditReport:
    return of_release(homes, "release", "amy")


def numbers(report: audits.AuditReport) -> dict[str, Any]:
    """All that was measured and judged: nothing of when and where."""
    outside = {"command", "made", "seconds", "versions", "subject", "policy", "release"}
    return report.model_dump(mode="json", exclude=outside)


def test_views_follow_from_what_is_audited(of_run, both, homes):
    assert of_run.views == ("anchor", "expert", "pair", "control")
    assert both.views == ("anchor", "expert", "pair", "release", "withdrawn")
    assert set(of_run.extraction) == set(of_run.views)
    assert set(of_run.membership) == {"anchor", "expert", "pair"}
    assert set(of_run.canaries) == {"expert", "pair"}
    assert set(both.canaries) == {"expert", "pair", "release", "withdrawn"}
    assert (of_run.subject, both.subject) == ("run", "release")
    assert of_run.release is None
    roster = (homes.folder / "release/roster.json").read_bytes()
    assert both.release == digest_bytes(roster)


def test_a_control_learns_the_first_documents_alone(homes, monkeypatch):
    monkeypatch.setattr(auditing, "CONTROL_DOCUMENTS", 2)
    plan = runs.plan(homes.run("amy"), homes.text("amy"), homes.anchor, control=True, samples=1)
    told = audit(plan)
    assert {view: found.documents for view, found in told.extraction.items()} == {
        "anchor": 4,
        "expert": 4,
        "pair": 4,
        "control": 2,
    }
    (control,) = [one for one in told.judgements if one.measure == "control"]
    assert "of 2 documents" in control.reason


def test_run_bundle_and_release_name_the_expert_that_is_sent(homes, of_run, both):
    manifest = json.loads((homes.bundle("amy") / "manifest.json").read_bytes())
    digests = {name: facts["sha256"] for name, facts in manifest["tensors"].items()}
    sent = digest_bytes(canonical_json(digests))
    assert (of_run.expert, both.expert) == (sent, sent)
    assert of_run.anchor == both.anchor == manifest["anchor"]


def test_a_bundle_gives_the_numbers_of_its_run(homes, of_run):
    text = homes.text("amy")
    parts = {}
    for name, aside in (("members", False), ("outsiders", True)):
        lines = [
            line
            for line in text.read_text().splitlines()
            if is_heldout(json.loads(line)[runs.KEY], runs.FRACTION) == aside
        ]
        parts[name] = homes.folder / f"{name}.jsonl"
        parts[name].write_text("\n".join(lines) + "\n", "utf-8")
    plan = runs.plan(
        homes.bundle("amy"),
        parts["members"],
        homes.anchor,
        nonmembers=runs.notes(parts["outsiders"]),
        canaries=homes.run("amy") / "canaries.json",
        documents=2,
    )
    told = audit(plan)
    assert told.subject == "bundle"
    assert told.membership == of_run.membership
    assert told.canaries == of_run.canaries
    views = ("anchor", "expert", "pair")
    assert [told.extraction[v] for v in views] == [of_run.extraction[v] for v in views]


def test_after_the_withdrawal_is_the_release_that_never_had_the_owner(homes, both):
    never = of_release(homes, "alone", "bob")
    assert both.extraction["withdrawn"] == never.extraction["pair"]
    assert both.membership["withdrawn"] == never.membership["pair"]
    assert both.extraction["anchor"] == never.extraction["anchor"]
    assert both.membership["anchor"] == never.membership["anchor"]
    assert both.membership["release"] != never.membership["pair"]


def test_the_same_seed_gives_the_same_numbers_and_another_draws_others(homes):
    plan = runs.plan(homes.run("amy"), homes.text("amy"), homes.anchor, documents=2, samples=1)
    assert numbers(audit(plan)) == numbers(audit(plan))
    other = numbers(audit(dataclasses.replace(plan, seed=1)))
    assert other["membership"] != numbers(audit(plan))["membership"]


def _chosen(homes: Homes, owner: str, **how: Any) -> _Attack:
    plan = runs.plan(homes.run(owner), homes.text(owner), homes.anchor, num_members=1000, **how)
    with open_subject(plan.subject, plan.anchor, plan.owner) as subject:
        return _Attack(plan, subject, None)


def _packed(homes: Homes, owner: str, part: str) -> set[tuple[int, ...]]:
    """The documents of one side as the run holds them, each to the model's last position."""
    folder = homes.run(owner) / "text" / "own" / part
    kind = json.loads((folder / "packed.json").read_bytes())["dtype"]
    stream = np.fromfile(folder / "tokens.bin", kind)
    starts, ends = (np.fromfile(folder / f"{name}.bin", np.int64) for name in ("starts", "ends"))
    # A document begins behind its separator.
    return {
        tuple(stream[start + 1 : end][:128].tolist())
        for start, end in zip(starts, ends, strict=True)
    }


@pytest.mark.parametrize("named", [False, True], ids=["kept aside", "other text named"])
def test_who_is_a_member_is_what_training_said(homes, named):
    other = runs.notes(homes.folder / "other.jsonl")
    attack = _chosen(homes, "amy", nonmembers=other if named else None)
    train, heldout = (_packed(homes, "amy", part) for part in ("train", "heldout"))
    members = {tuple(one.tokens.tolist()) for one in attack.members}
    outsiders = {tuple(one.tokens.tolist()) for one in attack.outsiders}
    assert len(members) > 20
    assert members <= train
    assert not members & heldout
    if named:
        assert not outsiders & (train | heldout)
    else:
        assert len(outsiders) > 5
        assert outsiders <= heldout


def test_nothing_asked_of_the_text_is_quoted(homes, of_run, tmp_path):
    pages.write_report(of_run, tmp_path / "report")
    canaries = json.loads((homes.run("amy") / "canaries.json").read_bytes())["texts"]
    lines = [json.loads(line) for line in homes.text("amy").read_text().splitlines()]
    told = (tmp_path / "report/report.json").read_text("utf-8")
    told += (tmp_path / "report/report.html").read_text("utf-8")
    for text in [*canaries, *(line["text"] for line in lines)]:
        words = text.split()
        for at in range(len(words) - 1):
            assert " ".join(words[at : at + 2]) not in told
    assert not any(f'"{line[runs.KEY]}"' in told for line in lines)


def test_pack_takes_this_report_and_no_other_runs(homes, tmp_path):
    lax = tmp_path / "policy.toml"
    limits = [f"{name} = {{warn = 1e6, fail = 1e6}}" for name in THRESHOLDS]
    lax.write_text("\n".join(limits), "utf-8")
    other = runs.notes(homes.folder / "other.jsonl")
    for owner in ("amy", "bob"):
        plan = runs.plan(
            homes.run(owner), homes.text(owner), homes.anchor, policy=lax, nonmembers=other
        )
        pages.write_report(audit(plan), tmp_path / owner)

    def pack_with(report: str) -> None:
        demand = audits.AuditDemand(tmp_path / report, accept_warnings=True)
        key = homes.folder / "amy.pem"
        pack(homes.run("amy"), key, tmp_path / "packed", audit=demand)

    with pytest.raises(StateError, match="the audit was of another owner"):
        pack_with("bob")
    pack_with("amy")
    sent = (homes.bundle("amy") / "manifest.json").read_bytes()
    assert (tmp_path / "packed/manifest.json").read_bytes() == sent
    with pytest.raises(PolicyError, match="did not pass"):
        pack(
            homes.run("amy"),
            homes.folder / "amy.pem",
            tmp_path / "again",
            audit=audits.AuditDemand(tmp_path / "amy"),
        )


def test_a_private_run_is_judged_by_its_promise(homes, tmp_path):
    private = ("privacy.epsilon=2", "privacy.delta=1e-3", "data.canaries=24")
    run = runs.train(tmp_path, homes.anchor, homes.text("amy"), "amy", *private)
    report = audit(runs.plan(run, homes.text("amy"), homes.anchor))
    paper = papers.read_paper(papers.RunPaper, run / "run.json")
    assert report.promise == paper.privacy
    assert report.promise is not None
    assert {one.delta for one in report.canaries.values()} == {1e-3}
    (promise,) = [one for one in report.judgements if one.measure == "promise"]
    assert promise.verdict == "pass"


def test_what_is_watched_comes_to_its_end(homes):
    told: list[tuple[str, int, int]] = []
    plan = runs.plan(homes.run("amy"), homes.text("amy"), homes.anchor, documents=1, samples=1)
    audit(plan, watch=lambda *now: told.append(now))
    assert [done for _, done, _ in told] == list(range(9))
    assert {total for _, _, total in told} == {9}


def test_strangers_who_are_members_are_refused_and_others_are_not(homes):
    for subject in ("amy.run", "amy.expert"):
        plan = runs.plan(homes.folder / subject, homes.text("amy"), homes.anchor)
        same = dataclasses.replace(plan, nonmembers=runs.notes(homes.text("amy")))
        refused(ConfigError, "are also among what was trained on", "not trained on", same)
    audit(dataclasses.replace(plan, nonmembers=runs.notes(homes.folder / "other.jsonl")))


@pytest.mark.parametrize(
    ("subject", "changes", "words", "remedy"),
    [
        ("amy.run", {"anchor": None}, "no anchor was named", "anchor's folder"),
        ("amy.expert", {"anchor": None}, "no anchor was named", "anchor's folder"),
        ("release", {"owner": "amy"}, "has its own anchor", "leave it"),
        ("release", {"anchor": None}, "whose expert?", "name one of: amy, bob"),
        ("amy.run", {"owner": "amy"}, "only a release has several owners", "leave it"),
        ("amy.run", {"canaries": Path("c.json")}, "has its own canaries", "leave it"),
        ("amy.run", {"seed": -1}, "seed -1", "at least 0"),
        ("amy.run", {"samples": 0}, "samples 0", "at least 1"),
        ("amy.expert", {}, "no text to compare with", "not trained on"),
        ("amy.run", {"continuation_tokens": 200}, "at least 232 tokens", "fewer tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_remedy(homes, subject, changes, words, remedy):
    plan = runs.plan(homes.folder / subject, homes.text("amy"), homes.anchor)
    error = DataError if "continuation_tokens" in changes else ConfigError
    refused(error, words, remedy, dataclasses.replace(plan, **changes))


@pytest.mark.parametrize("owner", ["eve", "anchor", "../amy"])
def test_nobody_of_that_name(homes, owner):
    plan = runs.plan(homes.folder / "release", homes.text("amy"), owner=owner)
    refused(ConfigError, "no expert called", "name one of: amy, bob", plan)


def test_a_run_judged_on_other_text_needs_it_again(homes):
    plan = runs.plan(homes.run("bob"), homes.text("bob"), homes.anchor)
    refused(ConfigError, "no text to compare with", "not trained on", plan)


@pytest.mark.parametrize("named", [False, True])
def test_records_told_apart_by_another_key_would_be_split_otherwise(homes, named):
    plan = dataclasses.replace(
        runs.plan(homes.run("amy"), homes.text("amy"), homes.anchor),
        members=runs.notes(homes.text("amy"), None),
        nonmembers=runs.notes(homes.folder / "other.jsonl") if named else None,
    )
    refused(ConfigError, "another key", "give patient", plan)


@pytest.mark.parametrize("field", ["owner", "anchor"])
def test_canaries_of_another_owner_or_anchor_are_refused(homes, tmp_path, field):
    fields = json.loads((homes.run("amy") / "canaries.json").read_bytes())
    fields[field] = {"owner": "bob", "anchor": "0" * 64}[field]
    (tmp_path / "canaries.json").write_bytes(canonical_json(fields))
    plan = runs.plan(
        homes.bundle("amy"),
        homes.text("amy"),
        homes.anchor,
        nonmembers=runs.notes(homes.folder / "other.jsonl"),
        canaries=tmp_path / "canaries.json",
    )
    refused(PolicyError, "canaries of another owner or anchor", "of the run that made", plan)


def test_an_unfinished_run_and_what_is_none(homes, tmp_path):
    stopped = shutil.copytree(homes.run("amy"), tmp_path / "run")
    (stopped / "run.json").unlink()
    plan = runs.plan(stopped, homes.text("amy"), homes.anchor)
    refused(StateError, "not finished", "--resume", plan)
    for nothing in (homes.anchor, homes.text("amy"), tmp_path / "nowhere"):
        plan = runs.plan(nothing, homes.text("amy"), homes.anchor)
        refused(FormatError, "neither a run", "name one", plan)


def test_lost_canaries_are_not_passed_over(homes, tmp_path):
    run = shutil.copytree(homes.run("amy"), tmp_path / "run")
    (run / "canaries.json").unlink()
    refused(StateError, "missing", "put it back", runs.plan(run, homes.text("amy"), homes.anchor))


HOSTILE = [
    ("run.json", b""),
    ("run.json", b"[]\n"),
    ("start.json", b""),
    ("start.json", b"[]\n"),
    ("start.json", b"7\n"),
    ("start.json", b'{"heldout":null,"text":{"key":[]}}\n'),
    ("start.json", b'{"text":{"key":"patient"}}\n'),
    ("start.json", None),
    ("canaries.json", b"{}\n"),
    ("canaries.json", b"\xff"),
    ("expert.safetensors", b"\x00" * 100),
    ("expert.safetensors", None),
]


@pytest.mark.parametrize(("name", "data"), HOSTILE)
def test_a_damaged_run_is_refused_and_leaves_nothing(homes, tmp_path, monkeypatch, name, data):
    run = shutil.copytree(homes.run("amy"), tmp_path / "run")
    (run / name).unlink()
    if data is not None:
        (run / name).write_bytes(data)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises((FormatError, StateError, IntegrityError)):
        audit(runs.plan(run, homes.text("amy"), homes.anchor))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "signature.json", "expert.safetensors"])
def test_a_damaged_bundle_is_refused(homes, tmp_path, name):
    bundle = shutil.copytree(homes.bundle("amy"), tmp_path / "bundle")
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(bytes(data))
    other = runs.notes(homes.folder / "other.jsonl")
    plan = runs.plan(bundle, homes.text("amy"), homes.anchor, nonmembers=other)
    with pytest.raises(TrustError):
        audit(plan)


def test_nothing_is_left_of_what_was_made_for_it(homes, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(homes.folder.rglob("*"))
    audit(runs.plan(homes.run("amy"), homes.text("amy"), homes.anchor, documents=1, samples=1))
    assert list(tmp_path.iterdir()) == []
    assert sorted(homes.folder.rglob("*")) == before

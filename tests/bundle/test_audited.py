"""Where an owner asks for an audit, only what has a fresh passing one is packed."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.audit import made
from tests.makers import read_arrays, write_arrays

from moiety.bundle import audits, pack, papers, verify_bundle
from moiety.bundle.audited import RequiredAudit
from moiety.bundle.summary import AuditSummary
from moiety.cli import run as moiety
from moiety.errors import FormatError, PolicyError, StateError
from moiety.files import digest_file

NOW = datetime(2026, 3, 20, 12, 0, 0, tzinfo=UTC)


def digest_by_hand(weights: Path) -> str:
    """The expert's digest as formats.md tells it, without our code."""
    data = weights.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    digests = {
        name: hashlib.sha256(data[slice(*(begin + end for end in facts["data_offsets"]))])
        for name, facts in header.items()
    }
    text = ",".join(f'"{name}":"{digests[name].hexdigest()}"' for name in sorted(digests))
    return hashlib.sha256(f"{{{text}}}\n".encode()).hexdigest()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return shutil.copytree(home / "clinic.run", tmp_path / "run")


def fitting(run: Path, report: audits.AuditReport | None = None, **changes: Any) -> Any:
    """A report, passing unless said otherwise, that fits the run."""
    paper = papers.read_paper(papers.RunPaper, run / "run.json")
    right = {
        "subject": "run",
        "owner": paper.owner,
        "anchor": paper.anchor,
        "promise": paper.privacy,
        "expert": digest_by_hand(run / "expert.safetensors"),
        "made": now(),
    }
    return (report or made.private()).model_copy(update=right | changes)


def written(run: Path, report: audits.AuditReport) -> Path:
    """The folder of a report beside the run."""
    folder = run.parent / "report"
    folder.mkdir(exist_ok=True)
    papers.write_paper(folder / "report.json", report)
    return folder


def try_to_pack(home: Path, run: Path, report: Path, **how: Any) -> Path:
    out = run.parent / "out.expert"
    pack(run, home / "clinic.pem", out, audit=audits.AuditDemand(report, **how))
    return out


@pytest.mark.parametrize("name", ["folder", "file"])
def test_a_fresh_passing_report_of_these_tensors_will_do(home: Path, run: Path, name: str) -> None:
    report = written(run, fitting(run))
    out = try_to_pack(home, run, report if name == "folder" else report / "report.json")
    assert digest_file(out / "manifest.json") == digest_file(home / "clinic.expert/manifest.json")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"owner": "court"}, StateError, "of another owner"),
        ({"anchor": "0" * 64}, StateError, "of another anchor"),
        ({"expert": "0" * 64}, StateError, "of another expert's tensors"),
        ({"promise": made.PROMISE}, StateError, "of another promise of privacy"),
        ({"subject": "bundle"}, StateError, "of a bundle, where nobody can tell"),
        ({"subject": "release"}, StateError, "of a release, where nobody can tell"),
        ({"made": "2001-01-01T00:00:00Z"}, StateError, "older than the 30 days"),
        ({"made": "2999-01-01T00:00:00Z"}, StateError, "made in the future"),
    ],
)
def test_a_report_of_something_else_or_of_another_time_is_refused(
    home: Path, run: Path, change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    report = written(run, fitting(run, **change))
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(kind, match=words) as caught:
        try_to_pack(home, run, report, accept_warnings=True, show=True)
    assert caught.value.where == str(report / "report.json")  # type: ignore[attr-defined]
    assert caught.value.remedy  # type: ignore[attr-defined]
    assert sorted(run.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["layers.0.mlp.up_proj.weight", "router.evidence"])
def test_a_report_from_before_one_number_changed_is_refused(
    home: Path, run: Path, name: str
) -> None:
    report = written(run, fitting(run))
    arrays = read_arrays(run / "expert.safetensors")
    arrays[name].flat[0] += 0.001
    write_arrays(run / "expert.safetensors", arrays)
    data = (run / "expert.safetensors").read_bytes()
    facts = papers.FileFacts(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    paper = papers.read_paper(papers.RunPaper, run / "run.json")
    papers.write_paper(run / "run.json", paper.model_copy(update={"expert": facts}))
    with pytest.raises(StateError, match="another expert's tensors"):
        try_to_pack(home, run, report)
    assert not (run.parent / "out.expert").exists()


def warning(run: Path) -> Any:
    judged = [one.model_copy(update={"verdict": "warn"}) for one in made.private().judgements[:1]]
    return fitting(run, made.private(judgements=tuple(judged), verdict="warn"))


def test_a_warning_is_packed_only_where_warnings_are_accepted(home: Path, run: Path) -> None:
    report = written(run, warning(run))
    with pytest.raises(PolicyError, match=r"did not pass \(warn\).*The owner promises") as caught:
        try_to_pack(home, run, report)
    assert "--accept-warnings" in str(caught.value.remedy)
    assert not (run.parent / "out.expert").exists()
    out = try_to_pack(home, run, report, accept_warnings=True, show=True)
    with verify_bundle(out, anchor=None, keys=None) as bundle:
        assert bundle.manifest.audit is not None
        assert bundle.manifest.audit.verdict == "warn"
        assert "with warnings" in bundle.manifest.audit.words()


def test_a_failed_audit_is_refused_whatever_is_accepted(home: Path, run: Path) -> None:
    report = written(run, fitting(run, made.failing()))
    for accept in (False, True):
        with pytest.raises(PolicyError, match=r"did not pass \(fail\): 'extraction: Of 200"):
            try_to_pack(home, run, report, accept_warnings=accept)
    assert not (run.parent / "out.expert").exists()


@pytest.mark.parametrize(
    ("age", "fresh"),
    [
        (timedelta(0), True),
        (timedelta(days=30, hours=23), True),
        (timedelta(days=31), False),
        (-timedelta(hours=23), True),
        (-timedelta(hours=25), False),
    ],
)
def test_age_is_counted_in_whole_days_and_clocks_may_differ_by_one(
    run: Path, age: timedelta, fresh: bool
) -> None:
    report = fitting(run, made=(NOW - age).strftime("%Y-%m-%dT%H:%M:%SZ"))
    required = RequiredAudit(audits.AuditDemand(written(run, report)))
    paper = papers.read_paper(papers.RunPaper, run / "run.json")
    with verify_bundle(pack_plainly(run), anchor=None, keys=None) as bundle:
        tensors = {name: facts.sha256 for name, facts in bundle.manifest.tensors.items()}
    if fresh:
        required.check(paper, tensors, NOW)
    else:
        with pytest.raises(StateError):
            required.check(paper, tensors, NOW)


def pack_plainly(run: Path) -> Path:
    from moiety.bundle import signing

    signing.new_key(run.parent / "k.pem")
    pack(run, run.parent / "k.pem", run.parent / "plain.expert")
    return run.parent / "plain.expert"


def test_what_is_no_audit_is_refused(home: Path, run: Path) -> None:
    for nothing in (run.parent / "nowhere", run):
        with pytest.raises(StateError, match="no audit's report here"):
            try_to_pack(home, run, nothing)
    report = written(run, fitting(run)) / "report.json"
    whole = report.read_bytes()
    for data in (
        whole.replace(b'"kind":"audit"', b'"kind":"evaluation"'),
        whole.replace(b'"verdict":"pass","versions', b'"verdict":"warn","versions'),
        whole.replace(b'{"anchor"', b'{ "anchor"', 1),
        whole.replace(b'"owner":', b'"unless":"friday","owner":'),
        whole[:-100],
        b"",
        b"null\n",
    ):
        assert data != whole
        report.write_bytes(data)
        with pytest.raises(FormatError):
            try_to_pack(home, run, report)
    with report.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FormatError, match="the limit is"):
        try_to_pack(home, run, report)
    assert not (run.parent / "out.expert").exists()


def test_the_summary_says_what_the_report_says_to_three_decimals(home: Path, run: Path) -> None:
    report = written(run, fitting(run))
    out = try_to_pack(home, run, report, show=True)
    said = json.loads((report / "report.json").read_bytes())
    policy = json.dumps(said["policy"], sort_keys=True, separators=(",", ":")) + "\n"
    holding = ("expert", "pair", "release")
    areas = {
        view: max(one["auc"]["value"] for one in attacks.values())
        for view, attacks in said["membership"].items()
    }
    shares = {view: one["extracted"]["value"] for view, one in said["extraction"].items()}
    told = json.loads((out / "manifest.json").read_bytes())["audit"]
    assert told == {
        "verdict": "pass",
        "made": said["made"],
        "report": digest_file(report / "report.json"),
        "policy": hashlib.sha256(policy.encode()).hexdigest(),
        "control": "worked",
        "documents": 200,
        "extracted": round(max(shares[view] for view in holding), 3),
        "extracted_anchor": round(shares["anchor"], 3),
        "auc": round(max(areas[view] for view in holding), 3),
        "auc_anchor": round(areas["anchor"], 3),
        "epsilon_low": 0.31,
    }
    # Neither the control nor what is left after the withdrawal speaks for the expert.
    assert told["extracted"] == 0.015 < shares["control"]
    assert (told["auc"], told["auc_anchor"]) == (0.529, 0.506)


def test_what_was_not_measured_is_not_told(home: Path, run: Path) -> None:
    bare = warning(run)
    shares = {"documents", "extracted", "extracted_anchor"}
    for empty, gone in (
        ({"canaries": {}}, {"epsilon_low"}),
        ({"membership": {}}, {"auc", "auc_anchor"}),
        ({"extraction": {"expert": bare.extraction["expert"]}}, shares),
    ):
        report = written(run, bare.model_copy(update=empty))
        found = RequiredAudit(audits.AuditDemand(report, show=True)).summary()
        assert found is not None
        assert {name for name, value in found.model_dump().items() if value is None} == gone
        assert "owner's word" in found.words()


@pytest.mark.parametrize(
    ("control", "told", "words"),
    [
        (0.5, "worked", "gets documents back"),
        (0.495, "failed", "says nothing"),
        (None, "skipped", "was not tried"),
    ],
)
def test_whether_the_attack_works_is_told(
    home: Path, run: Path, control: float | None, told: str, words: str
) -> None:
    bare = warning(run)
    views = {view: found for view, found in bare.extraction.items() if view != "control"}
    if control is not None:
        share = audits.Estimate(value=control, low=control - 0.1, high=control + 0.1)
        found = bare.extraction["control"].model_copy(update={"extracted": share})
        views["control"] = found
    report = written(run, bare.model_copy(update={"extraction": views}))
    out = try_to_pack(home, run, report, show=True, accept_warnings=True)
    with verify_bundle(out, anchor=None, keys=None) as bundle:
        audit = bundle.manifest.audit
    assert audit is not None
    assert audit.control == told
    assert words in audit.words()
    assert words in (out / "README.md").read_text("utf-8")


def test_a_report_whose_figures_no_audit_has_is_refused(home: Path, run: Path) -> None:
    whole = fitting(run)
    odd = whole.extraction["expert"].model_copy(
        update={"extracted": audits.Estimate(value=0.0177, low=0.0, high=0.1)}
    )
    lacking = {view: found for view, found in whole.extraction.items() if view != "control"}
    for extraction, words in (
        ({**whole.extraction, "expert": odd}, "so many documents cannot have"),
        (lacking, "does not work"),
    ):
        report = written(run, whole.model_copy(update={"extraction": extraction}))
        with pytest.raises(FormatError, match=f"contradicts itself.*{words}"):
            try_to_pack(home, run, report, show=True)
    assert not (run.parent / "out.expert").exists()


def test_card_and_verify_tell_it_only_where_it_is_shown(
    home: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = written(run, fitting(run))
    words = [
        *("pack", str(run), "--key", str(home / "clinic.pem"), "--out", str(run.parent / "b")),
        *("--require-audit", str(report)),
    ]
    assert moiety([*words, "--show-audit"]) == 0
    card = (run.parent / "b/README.md").read_text("utf-8")
    assert "## Audit\n\nAudited by its owner on" in card
    assert "1.5% of 200 documents, 1.0% from the anchor alone" in card
    assert "gets documents back from a model overfitted on purpose" in card
    assert "AUC 0.529, 0.506 from the anchor alone" in card
    assert "an epsilon of at least 0.31" in card
    assert digest_file(report / "report.json") in card
    capsys.readouterr()
    assert moiety(["verify", str(run.parent / "b"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "This is the owner's word" in out
    line = json.loads(out.splitlines()[-1])
    assert line["audit_report"] == digest_file(report / "report.json")
    assert "## Audit" not in (home / "clinic.expert/README.md").read_text("utf-8")
    assert moiety(["verify", str(home / "clinic.expert"), "--json"]) == 0
    assert "audit" not in json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("option", ["--show-audit", "--accept-warnings"])
def test_a_refusal_and_an_option_without_an_audit_exit_2(
    home: Path, run: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    out = run.parent / "b"
    words = ["pack", str(run), "--key", str(home / "clinic.pem"), "--out", str(out)]
    assert moiety([*words, option]) == 2
    assert f"{option} is about an audit" in capsys.readouterr().err
    failed = written(run, fitting(run, made.failing()))
    assert moiety([*words, option, "--require-audit", str(failed)]) == 2
    assert "did not pass (fail)" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("extraction", {"extracted": 1.01}), ("membership", {"auc": -0.01})],
)
def test_a_share_beyond_all_is_none(field: str, value: dict[str, float]) -> None:
    fields = json.loads(papers.paper_bytes(made.private()))
    place = fields[field]["expert"]
    place = place["loss"] if field == "membership" else place
    for name, number in value.items():
        place[name]["value"] = number
    with pytest.raises(ValueError, match="a share outside 0 to 1"):
        audits.AuditReport.model_validate_json(json.dumps(fields))


def test_a_summary_has_figures_in_pairs() -> None:
    known = {
        **{"made": "2026-03-14T09:26:53Z", "report": "0" * 64},
        **{"policy": "1" * 64, "extracted": 0.5, "extracted_anchor": 0.1, "documents": 10},
        **{"auc": None, "auc_anchor": None, "epsilon_low": None, "control": "worked"},
        "verdict": "warn",
    }
    assert AuditSummary.model_validate(known).auc is None
    with pytest.raises(ValueError, match="without the anchor's"):
        AuditSummary.model_validate(known | {"extracted_anchor": None})

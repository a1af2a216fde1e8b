"""Page and terminal show what the report holds; nothing is fetched; words are only words."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from tests.audit import made

from moiety.audit import charts, pages, tables, words
from moiety.bundle.audits import (
    ATTACKS,
    AUDIT_MAX_BYTES,
    VIEWS,
    AuditReport,
    Estimate,
    Judgement,
    Policy,
)
from moiety.bundle.papers import paper_bytes, read_paper
from moiety.errors import StateError

NAMES = {
    "anchor": "the public model alone",
    "expert": "the expert alone, routing forced",
    "pair": "anchor and expert as trained",
    "release": "the merged model",
    "withdrawn": "the merged model after the owner left",
    "control": "a model overfitted on purpose (control)",
}


@pytest.fixture(scope="module", params=["failing", "private"])
def report(request: pytest.FixtureRequest) -> AuditReport:
    return getattr(made, request.param)()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(report: AuditReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "report"
    pages.write_report(report, path)
    return path


def visible(page: str) -> str:
    """What a reader sees: no style, no tags, entities resolved, spaces collapsed."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def share(one: Estimate) -> str:
    return f"{100 * one.value:.1f} % {100 * one.low:.1f} % to {100 * one.high:.1f} %"


def points(one: Estimate | None) -> str:
    if one is None:
        return "\N{EN DASH}"
    ends = [round(100 * end, 1) + 0.0 for end in (one.value, one.low, one.high)]
    return "{:+.1f} points {:+.1f} to {:+.1f}".format(*ends)


def rows(report: AuditReport) -> Iterator[str]:
    """Every row of every table of numbers as the page must show it."""
    beside = {"anchor": " what the public model already gives away"}
    for view, found in report.extraction.items():
        run = found.mean_run
        yield (
            f"{NAMES[view]}{beside.get(view, '')} {found.documents:,} {share(found.extracted)} "
            f"{points(found.excess)} {share(found.verbatim)} {run.value:.1f} "
            f"{run.low:.1f} to {run.high:.1f} {found.longest_run:,}"
        )
    for attacks in report.membership.values():
        for attack, one in attacks.items():
            hits = [
                "\N{EN DASH} too few documents" if hit is None else share(hit)
                for hit in (one.hits["0.001"], one.hits["0.01"])
            ]
            yield (
                f"{attack} {one.auc.value:.3f} {one.auc.low:.3f} to {one.auc.high:.3f} "
                f"{points(one.excess)} {' '.join(hits)}"
            )
    for view, canary in report.canaries.items():
        bits = canary.exposure
        yield (
            f"{NAMES[view]}{beside.get(view, '')} {canary.planted:,} {canary.left_out:,} "
            f"{bits.value:.2f} {bits.low:.2f} to {bits.high:.2f} {canary.most_exposed:.2f} "
            f"{canary.right:,} of {canary.guesses:,} {canary.epsilon_low:.3g} {canary.delta:.3g}"
        )


def facts(report: AuditReport) -> Iterator[str]:
    """What else the page must tell."""
    settings = report.settings
    yield from (report.owner, report.expert, report.anchor, report.made, report.command)
    yield f"{settings.prefix_tokens} tokens in a row from there and asked {settings.samples} times"
    yield f"to go on for {settings.continuation_tokens};"
    yield "Too short to be tried (under 96 tokens): 1,317 of 4,210 documents."
    yield "Too short to be tried (under 16 tokens): 46 of 4,210 documents, 31 of 2,977 strangers."
    yield f"{settings.members:,} documents that the expert was trained on"
    yield f"{settings.nonmembers:,} of the same kind"
    yield f"up to {settings.member_tokens:,} tokens of each"
    yield f"{settings.documents:,} documents for passages, seed {settings.seed}."
    yield from (f"{report.seconds:,.1f} seconds", "rapidfuzz 3.14.1")
    yield from (NAMES[view] for view in report.views)
    yield from (one.reason for one in report.judgements)
    yield f"used for {report.policy.max_age_days} days"
    if report.release is not None:
        yield report.release
    if report.promise is not None:
        yield report.promise.words()
        yield f"Promised: epsilon {report.promise.epsilon:.3g} at delta"


def test_the_page_shows_every_number(report: AuditReport, folder: Path) -> None:
    seen = visible((folder / "report.html").read_text("utf-8"))
    assert [row for row in (*rows(report), *facts(report)) if row not in seen] == []
    for name in ("extracted_excess", "membership_excess", "epsilon_low", "withdrawn_excess"):
        limit = getattr(report.policy, name)
        assert f"{words.POLICY_WORDS[name]} {limit.warn:.3g} {limit.fail:.3g}" in seen


def test_the_verdict_is_told_in_a_word_and_a_sign(report: AuditReport, folder: Path) -> None:
    seen = visible((folder / "report.html").read_text("utf-8"))
    head = seen[: seen.index("The judgements")]
    told = {"fail": "✗ Fail At least one", "pass": "✓ Pass Every measure"}
    assert [word for word in told.values() if word in head] == [told[report.verdict]]
    assert ("should not be sent" in head) == (report.verdict == "fail")
    for one in report.judgements:
        sign = {"pass": "✓", "warn": "!", "fail": "✗"}[one.verdict]
        assert f"{sign} {one.verdict} {words.MEASURE_WORDS[one.measure]}" in seen


def test_a_warning_is_told_as_one() -> None:
    judgements = tuple(
        one.model_copy(update={"verdict": "warn"}) for one in made.private().judgements
    )
    page = pages.render_page(made.private(judgements=judgements, verdict="warn"), {}, {})
    assert "! Warning Nothing went above" in visible(page)


def test_the_worst_stands_first(report: AuditReport) -> None:
    order = ["fail", "warn", "pass"]
    places = [order.index(one.verdict) for one in words.worst_first(report)]
    assert places == sorted(places)
    assert set(words.worst_first(report)) == set(report.judgements)


def test_numbers_of_judgements_carry_their_unit(folder: Path, report: AuditReport) -> None:
    seen = visible((folder / "report.html").read_text("utf-8"))
    told = {
        "fail": (
            "+32.0 points +25.6 to +38.6",
            "9.31 bits 9.08 to 9.55",
            "91.5 % 86.8 % to 94.6 %",
        ),
        "pass": ("+0.5 points +0.0 to +1.5", "1.84 bits 1.61 to 2.08", "+0.0 points -1.0 to +1.0"),
    }
    assert [number for number in told[report.verdict] if number not in seen] == []


def test_the_head_tells_the_strongest_view_beside_the_anchor(
    folder: Path, report: AuditReport
) -> None:
    seen = visible((folder / "report.html").read_text("utf-8")).replace("\xa0", " ")
    head = seen[: seen.index("The judgements")]
    told = {
        "fail": ("33.0 % of the documents", "85.7 % of pairs", "≥ 3.12", "nothing was promised"),
        "pass": ("1.5 % of the documents", "52.9 % of pairs", "≥ 0.31", "promised: ≤ 3.98"),
    }
    for words_ in (*told[report.verdict], "public model alone: 1.0 %", "alone: 50.6 %; a coin"):
        assert words_ in head, words_


class Links(HTMLParser):
    """Collects every tag, what a browser might fetch, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        fetching = ("src", "srcset", "href", "data", "action", "poster", "background")
        self.links += [value or "" for name, value in attrs if name in fetching]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_is_well_formed(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    parser = Links()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.links) >= 8
    assert all(link.startswith("data:image/png;base64,") or link == "#limits"
               for link in parser.links)  # fmt: skip
    assert not parser.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"https?://|url\(|@import", page)


def test_words_of_others_stay_words() -> None:
    evil = '<script>alert("x")</script>[bold]{{7*7}}'
    one = Judgement(measure=evil, view=None, number=None, verdict="pass", reason=evil)
    report = made.private(judgements=(one,), command=evil)
    page = pages.render_page(report, {}, {})
    assert "<script" not in page
    assert html.unescape(page).count(evil) == 3
    assert evil in terminal(report)


def terminal(report: AuditReport) -> str:
    console = Console(file=io.StringIO(), width=400, color_system=None)
    for table in tables.render_tables(report):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_terminal_shows_the_numbers(report: AuditReport) -> None:
    seen = " ".join(terminal(report).split())
    for found in report.extraction.values():
        above = "-" if found.excess is None else points(found.excess).partition(" points")[0]
        low, high = (f"{100 * end:.1f}" for end in (found.extracted.low, found.extracted.high))
        assert f"{100 * found.extracted.value:.1f} % {low} - {high} {above}" in seen
        assert f"{100 * found.verbatim.value:.1f} % {found.mean_run.value:.1f}" in seen
    for attacks in report.membership.values():
        best = max(attacks.values(), key=lambda one: one.auc.value)
        assert f"ratio {best.auc.value:.3f} {best.auc.low:.3f} - {best.auc.high:.3f}" in seen
        assert f"{100 * best.hits['0.01'].value:.1f} %" in seen  # type: ignore[union-attr]
    for canary in report.canaries.values():
        assert f"{canary.right} of {canary.guesses} {canary.epsilon_low:.3g}" in seen
    assert f" Verdict: {report.verdict} " in f" {seen}"
    assert [one.reason for one in report.judgements if one.reason not in seen] == []


def test_report_json_is_a_canonical_paper(report: AuditReport, folder: Path) -> None:
    data = (folder / "report.json").read_bytes()
    assert data == paper_bytes(report)
    assert read_paper(AuditReport, folder / "report.json", max_bytes=AUDIT_MAX_BYTES) == report
    plain = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert data == (plain + "\n").encode()


def test_the_same_report_makes_the_same_bytes(
    report: AuditReport, folder: Path, tmp_path: Path
) -> None:
    pages.write_report(report, tmp_path / "again")
    names = {path.name for path in folder.iterdir()}
    pictures = {"extraction.png", "membership.png", "exposure.png", "epsilon.png"}
    assert names == {"report.json", "report.html"} | pictures
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    with pytest.raises(StateError, match="exists already"):
        pages.write_report(report, folder)


def test_charts_are_pictures_by_day_and_by_night(report: AuditReport) -> None:
    for dark, paper in ((False, (255, 255, 255)), (True, (23, 28, 33))):
        for name, data in charts.draw(report, dark=dark).items():
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.width >= 1000, name
                colours = picture.convert("RGB").getcolors(picture.width * picture.height)
                assert max(colours)[1] == paper, name
                assert len(colours) > 100, name


def test_an_audit_that_measured_nothing_has_a_page_too(tmp_path: Path) -> None:
    bare = made.failing(judgements=(), verdict="fail")
    bare = bare.model_copy(update={"extraction": {}, "membership": {}, "canaries": {}})
    pages.write_report(bare, tmp_path / "bare")
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "report.html", "report.json",
    ]  # fmt: skip
    assert "None were planted" in (tmp_path / "bare" / "report.html").read_text("utf-8")
    assert "Verdict: fail" in terminal(bare)


def test_everything_has_a_name_for_people() -> None:
    assert set(words.VIEW_WORDS) == set(words.VIEW_SHORT) == set(words.VIEW_MEANING) == set(VIEWS)
    assert words.VIEW_WORDS == NAMES
    assert set(words.ATTACK_WORDS) == set(ATTACKS)
    assert set(words.POLICY_WORDS) == set(Policy.model_fields) - {"max_age_days"}
    assert set(charts.COLOURS) == set(VIEWS)
    assert len(set(charts.COLOURS.values())) == len(VIEWS)


def test_a_curve_begins_where_rates_can_be_told() -> None:
    curve = ((0.0, 0.0), (0.0005, 0.02), (0.001, 0.03), (0.5, 0.7), (1.0, 1.0))
    assert charts.from_rate(curve, 0.01) == ([0.01, 0.5, 1.0], [0.03, 0.7, 1.0])
    assert charts.from_rate(((0.2, 0.001), (1.0, 1.0)), 0.01) == ([0.2, 1.0], [0.01, 1.0])

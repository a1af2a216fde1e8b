"""Page and terminal show what the report holds; nothing is fetched; names are only names."""

from __future__ import annotations

import html
import io
import json
import re
from itertools import pairwise

import pytest
from PIL import Image
from rich.console import Console
from tests.study.conftest import study

from moiety.evaluate import pages as shared
from moiety.study import StudyReport, pages
from moiety.study.charts import OURS, spread
from moiety.study.findings import RIVALS
from moiety.study.methods import METHODS


@pytest.fixture(scope="module")
def report(done):
    return StudyReport.model_validate_json((done / "report/report.json").read_bytes())


def visible(page):
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def shown(report):
    """Every number of the report as both views must show it."""
    for row in report.rows:
        yield row.name
        yield from (f"{number.value:.3f}" for number in row.bits_per_byte.values())
        for gap in (row.gap_closed, *row.gap_closed_first.values()):
            if gap is not None:
                yield shared.show_share(gap.value)
        if row.cost is not None:
            yield pages.show_count(row.cost.training_flops)
            yield pages.show_count(row.cost.parameters)
    for owner, price in report.removal.items():
        yield owner
        yield shared.show_signed(price.value)
    yield from (pages.show_finding(finding) for finding in report.findings)


def test_what_pages_single_out_are_methods_that_there_are():
    assert {*OURS, *RIVALS} <= set(METHODS)


def test_the_page_shows_every_number(done, report):
    seen = visible((done / "report/report.html").read_text("utf-8"))
    assert [number for number in shown(report) if number not in seen] == []
    for row in report.rows:
        assert row.told in seen


def test_the_terminal_shows_every_number(report):
    console = Console(file=io.StringIO(), width=200)
    for table in pages.render_tables(report):
        console.print(table)
    seen = console.file.getvalue()
    assert [number for number in shown(report) if number not in seen] == []


def test_the_page_needs_nothing_but_itself(done):
    page = (done / "report/report.html").read_text("utf-8")
    assert "<script" not in page
    links = re.findall(r'(?:src|href|srcset)="([^"]*)"', page)
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)


def test_charts_are_pictures_and_the_same_numbers_make_the_same_bytes(done, report, tmp_path):
    names = {path.name for path in (done / "report").glob("*.png")}
    assert names == {
        f"{n}.png" for n in ("gap-closed", "difference", "removal", "inference", "training")
    }
    pages.write_report(report, tmp_path / "again")
    for path in (done / "report").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    with Image.open(done / "report/gap-closed.png") as picture:
        assert picture.width > 800


def test_a_study_of_one_model_has_a_page_too(desk, tmp_path):
    assert study(desk, tmp_path / "out", methods=("anchor",)) == 0
    report = json.loads((tmp_path / "out/report/report.json").read_bytes())
    assert [row["name"] for row in report["rows"]] == ["anchor"]
    assert report["findings"] == []
    assert "has no oracle" in (tmp_path / "out/report/report.html").read_text("utf-8")


def test_names_are_only_names(report, tmp_path):
    evil = '<script>alert("x")</script>[bold]'
    row = report.rows[0].model_copy(update={"told": evil})
    pages.write_report(report.model_copy(update={"rows": (row,), "name": evil}), tmp_path / "page")
    page = (tmp_path / "page/report.html").read_text("utf-8")
    assert "<script" not in page
    assert evil in html.unescape(page)


def test_counts_are_written_with_three_digits():
    told = {0: "0", 999: "999", 7_215_360: "7.22 M", 1.5e15: "1.5 P", 1234: "1.23 k"}
    assert {count: pages.show_count(count) for count in told} == told


@pytest.mark.parametrize("wanted", [[0.5] * 18, [0.97, 0.98, 0.99], [0.1, 0.9], [0.0] * 30, []])
def test_labels_keep_apart_in_their_order_and_stay_on_the_chart(wanted):
    places = spread(wanted)
    apart = 1 / max(len(wanted), 18)
    gaps = [b - a for a, b in pairwise(places)]
    assert all(gap >= apart - 1e-9 for gap in gaps)
    assert all(-1e-9 <= place <= 1 for place in places)
    assert wanted != [0.1, 0.9] or places == wanted

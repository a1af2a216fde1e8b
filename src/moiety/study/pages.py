"""What a study found, on the terminal, as a page with charts, and as a paper beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from moiety.evaluate import pages
from moiety.study import charts
from moiety.study.paper import Finding, Number, StudyReport, StudyRow


def write_report(report: StudyReport, folder: Path) -> None:
    """Writes ``report.json``, ``report.html`` and the charts; a report that stands is replaced."""
    light = charts.draw(report, dark=False)
    page = pages.render(
        "study.html.j2",
        light,
        charts.draw(report, dark=True),
        room="moiety.study",
        filters={
            "count": show_count,
            "found": show_finding,
            "found_ends": show_ends,
            "half": show_half,
            "half_share": show_half_share,
        },
        report=report,
    )
    pages.write_folder(folder, report.model_dump(mode="json"), page, light, replace=True)


def render_tables(report: StudyReport) -> Iterator[Table]:
    """The tables for the terminal: bits per byte, gaps and costs, removal, the summary."""
    yield _bits_per_byte(report)
    yield _gaps_and_costs(report)
    if report.removal:
        table = _table("Price of removal, bits per byte above the anchor", "owner", "price", "95 %")
        for owner, price in report.removal.items():
            ends = pages.show_interval(price.interval, signed=True)
            table.add_row(Text(owner), pages.show_signed(price.value), ends)
        yield table
    if report.findings:
        table = _table("Summary", "question", "answer", "95 %")
        for finding in report.findings:
            table.add_row(Text(finding.told), show_finding(finding), show_ends(finding))
        yield table


def _bits_per_byte(report: StudyReport) -> Table:
    table = _table("Bits per byte", "method", *report.text_names, "mean", "95 %")
    table.caption = (
        f"mean of {len(report.seeds)} seed(s); lower is better; bold: best of its column"
    )
    for row in report.rows:
        cells = [
            _bits(row.bits_per_byte.get(text), report.best(text)) for text in report.text_names
        ]
        half = Text("" if row.mean is None else show_half(row.mean))
        table.add_row(Text(row.name), *cells, _bits(row.mean, report.best(None)), half)
    return table


def _gaps_and_costs(report: StudyReport) -> Table:
    columns = ("whole", "first 128", "first 32", "training", "a token", "parameters")
    table = _table("Gap closed, and what it takes", "method", *columns)
    table.caption = "gap closed on whole documents and their first tokens; costs in FLOPs"
    for row in report.rows:
        gaps = [row.gap_closed, *(row.gap_closed_first.get(count) for count in ("128", "32"))]
        cells = ["-" if gap is None else pages.show_share(gap.value) for gap in gaps]
        table.add_row(Text(row.name), *cells, *_costs(row))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=first == "method")
    for column in columns:
        # Text, not str: names are other people's, and square brackets are markup to rich.
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _bits(number: Number | None, best: float) -> Text:
    if number is None:
        return Text("-")
    return Text(pages.show(number.value), "bold" if number.value == best else "")


def _costs(row: StudyRow) -> tuple[str, str, str]:
    if row.cost is None:
        return "-", "-", "-"
    cost = row.cost
    numbers = (cost.training_flops, cost.inference_flops_per_token, cost.parameters)
    training, inference, parameters = map(show_count, numbers)
    return training, inference, parameters


def show_half(number: Number) -> str:
    """Half the width of an interval, as it stands behind a number."""
    low, high = number.interval
    return f"±{(high - low) / 2:.3f}"


def show_half_share(number: Number) -> str:
    """The same for a share."""
    low, high = number.interval
    return f"±{pages.show_share((high - low) / 2)}"


def show_count(count: float) -> str:
    """A large count with three digits: ``7.22 M``, ``1.04 P``."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def show_finding(finding: Finding) -> str:
    """An answer in its unit."""
    value = finding.number.value
    return pages.show_signed(value) if finding.unit == "bits" else pages.show_share(value)


def show_ends(finding: Finding) -> str:
    """The ends of an answer's interval in its unit; costs are not measured but counted."""
    low, high = finding.number.interval
    if finding.unit == "cost":
        return "counted"
    if finding.unit == "share":
        return f"{pages.show_share(low)} to {pages.show_share(high)}"
    return pages.show_interval((low, high), signed=True)

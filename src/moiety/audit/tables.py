"""An audit on the terminal: the same numbers as in the paper and on the page."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from moiety.audit import words
from moiety.bundle import audits
from moiety.evaluate import pages

_STYLES = {"pass": "", "warn": "yellow", "fail": "bold red"}
_ABOVE = "above: points above the public model"


def render_tables(report: audits.AuditReport) -> Iterator[Table]:
    """The tables for the terminal: extraction, membership, canaries, and last the judgements."""
    if report.extraction:
        yield _extraction(report)
    if report.membership:
        yield _membership(report)
    if report.canaries:
        yield _canaries(report)
    yield _judgements(report)


def _extraction(report: audits.AuditReport) -> Table:
    columns = ("share", "95 %", "above", "exact", "run", "longest")
    table = _table("Passages got back", *columns)
    table.caption = (
        f"of documents continued from {report.settings.prefix_tokens} tokens; {_ABOVE}\n"
        "exact: word for word; run: tokens repeated, on average\n"
        f"{words.short_passages(report.settings)}"
    )
    for view in words.in_order(report, report.extraction):
        found = report.extraction[view]
        table.add_row(
            Text(words.VIEW_SHORT[view]),
            pages.show_share(found.extracted.value),
            _ends(100 * found.extracted.low, 100 * found.extracted.high, 1),
            _above(found.excess),
            pages.show_share(found.verbatim.value),
            f"{found.mean_run.value:.1f}",
            f"{found.longest_run:,}",
        )
    return table


def _membership(report: audits.AuditReport) -> Table:
    table = _table("Who was in the text", "attack", "AUC", "95 %", "above", "0.1 %", "1 %")
    table.caption = (
        f"the strongest attack; AUC 0.5 is a coin; {_ABOVE}\n"
        "last: members found at 0.1 % and at 1 % false alarms\n"
        f"{words.short_members(report.settings)}"
    )
    for view in words.in_order(report, report.membership):
        attack = words.strongest(report.membership[view])
        found = report.membership[view][attack]
        hits = [found.hits.get(rate) for rate in ("0.001", "0.01")]
        table.add_row(
            Text(words.VIEW_SHORT[view]),
            attack,
            pages.show(found.auc.value),
            _ends(found.auc.low, found.auc.high, 3),
            _above(found.excess),
            *("-" if one is None else pages.show_share(one.value) for one in hits),
        )
    return table


def _canaries(report: audits.AuditReport) -> Table:
    table = _table("Canaries", "exposure", "95 %", "most", "right", "epsilon")
    promise = report.promise
    table.caption = "exposure in bits, 1.4 by chance; epsilon: at least so much\n" + (
        "nothing was promised" if promise is None else f"promised: epsilon {promise.epsilon:.3g}"
    )
    for view in words.in_order(report, report.canaries):
        found = report.canaries[view]
        table.add_row(
            Text(words.VIEW_SHORT[view]),
            f"{found.exposure.value:.2f}",
            _ends(found.exposure.low, found.exposure.high, 2),
            f"{found.most_exposed:.2f}",
            f"{found.right:,} of {found.guesses:,}",
            words.show_number(found.epsilon_low),
        )
    return table


def _judgements(report: audits.AuditReport) -> Table:
    table = Table(
        title=f"Verdict: {report.verdict}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        min_width=60,
    )
    table.add_column("", no_wrap=True)
    table.add_column("measure, seen through", overflow="fold")
    table.add_column("why", overflow="fold")
    for one in words.worst_first(report):
        mark = Text(f"{words.SYMBOLS[one.verdict]} {one.verdict}", _STYLES[one.verdict])
        view = "" if one.view is None else f"\n{words.VIEW_SHORT[one.view]}"
        # Text, not str: square brackets in a reason are markup to rich.
        table.add_row(mark, Text(one.measure + view), Text(one.reason))
    return table


def _table(title: str, *columns: str) -> Table:
    """Cells may break where the screen is narrow: a number that is cut is a wrong number."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("seen through", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _ends(low: float, high: float, digits: int) -> str:
    return f"{low:.{digits}f} - {high:.{digits}f}"


def _above(excess: audits.Estimate | None) -> str:
    return "-" if excess is None else words.show_points(excess.value).removesuffix(" points")

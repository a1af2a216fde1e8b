"""An audit as a page that somebody can read who answers for data and not for models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moiety.audit import charts, words
from moiety.bundle import audits
from moiety.evaluate import pages


def write_report(report: audits.AuditReport, folder: Path) -> None:
    """Writes ``report.json`` (canonical), ``report.html`` (needs nothing else) and the charts.

    Raises:
        StateError: ``folder`` exists already and is not empty.
    """
    light = charts.draw(report, dark=False)
    page = render_page(report, light, charts.draw(report, dark=True))
    pages.write_folder(folder, report.model_dump(mode="json"), page, light)


def render_page(report: audits.AuditReport, light: pages.Pictures, dark: pages.Pictures) -> str:
    """One HTML page with everything in it: no script, nothing to fetch."""
    return pages.render(
        "audit.html.j2",
        light,
        dark,
        room="moiety.audit",
        filters={
            "points": words.show_points,
            "number": words.show_number,
            "share_ends": words.share_ends,
            "point_ends": words.point_ends,
            "bare_ends": words.bare_ends,
            "measure": words.measure_words,
            "strongest": words.strongest,
        },
        report=report,
        facts=list(_facts(report)),
        words=words,
    )


class _Fact(NamedTuple):
    """A number at the head of the page, what it is, and what to hold it against."""

    number: str
    told: str
    beside: str


def _facts(report: audits.AuditReport) -> Iterator[_Fact]:
    """What gives most away, each number beside the anchor's or the promise."""
    shares = {view: found.extracted.value for view, found in report.extraction.items()}
    view = words.worst_view(shares)
    if view is not None:
        yield _Fact(
            pages.show_share(shares[view]),
            f"of the documents tried got back, through {words.VIEW_WORDS[view]}",
            _beside(pages.show_share(shares["anchor"]) if "anchor" in shares else None),
        )
    areas = {
        view: found[words.strongest(found)].auc.value
        for view, found in report.membership.items()
        if found
    }
    view = words.worst_view(areas)
    if view is not None:
        yield _Fact(
            pages.show_share(areas[view]),
            f"of pairs of a member and a stranger told apart, through {words.VIEW_WORDS[view]}",
            _beside(pages.show_share(areas["anchor"]) if "anchor" in areas else None)
            + "; a coin: 50\N{NO-BREAK SPACE}%",
        )
    bounds = {view: found.epsilon_low for view, found in report.canaries.items()}
    view = words.worst_view(bounds)
    if view is not None:
        promise = report.promise
        yield _Fact(
            f"≥ {words.show_number(bounds[view])}",
            f"epsilon shown by canaries, through {words.VIEW_WORDS[view]}",
            "nothing was promised" if promise is None else f"promised: ≤ {promise.epsilon:.3g}",
        )


def _beside(anchor: str | None) -> str:
    return "the public model was not tried" if anchor is None else f"public model alone: {anchor}"

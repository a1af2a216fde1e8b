"""The pictures of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from moiety.audit.words import VIEW_SHORT, in_order, strongest
from moiety.bundle import audits
from moiety.evaluate import figures, pages

COLOURS: Mapping[audits.View, str] = {
    "anchor": figures.GREY,
    "expert": figures.ORANGE,
    "pair": figures.BLUE,
    "release": figures.PALETTE[2],
    "withdrawn": figures.SKY,
    "control": figures.PALETTE[3],
}
_DASHES: Mapping[audits.View, Any] = {
    "anchor": "-",
    "expert": "-",
    "pair": "--",
    "release": "-.",
    "withdrawn": ":",
    "control": (0, (1, 3)),
}
_LEAST_RATE = 1e-3
"""False positives below one in a thousand are not drawn: few audits have the documents to know."""


def draw(report: audits.AuditReport, *, dark: bool) -> dict[str, bytes]:
    """Every chart the audit has numbers for: name to PNG."""
    theme = figures.DARK if dark else figures.LIGHT
    pictures = {}
    if report.extraction:
        pictures["extraction"] = _extraction(report, theme)
    if report.membership:
        pictures["membership"] = _membership(report, theme)
    if report.canaries:
        pictures["exposure"] = _exposure(report, theme)
        pictures["epsilon"] = _epsilon(report, theme)
    return pictures


def _extraction(report: audits.AuditReport, theme: figures.Theme) -> bytes:
    """Documents got back by view; a diamond where greedy continuation was the document itself."""
    views = in_order(report, report.extraction)
    found = report.extraction
    figure, axes = _bars(
        views, {view: found[view].extracted for view in views}, theme, pages.show_share
    )
    handles = {"nearly, in some sample": axes.patches[0]}
    for y, view in enumerate(views):
        (handles["word for word, greedily"],) = axes.plot(
            found[view].verbatim.value, y, "D", markersize=6, color=theme.paper,
            markeredgecolor=theme.ink, markeredgewidth=1.2, zorder=4,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(0, _room(axes, 1.0))
    axes.set_xlabel("share of the documents tried, with 95 % interval", color=theme.ink)
    figures.add_legend(figure, handles, theme)
    return figures.png(figure)


def _membership(report: audits.AuditReport, theme: figures.Theme) -> bytes:
    """The strongest attack of every view: all of the curve, and its beginning enlarged."""
    figure = figures.blank_figure(9.6, 4.7, theme)
    whole, beginning = figure.subplots(1, 2)
    least = max(_LEAST_RATE, 1 / max(report.settings.nonmembers, 1))
    handles: dict[str, Any] = {}
    for view in in_order(report, report.membership):
        attacks = report.membership[view]
        curve = attacks[strongest(attacks)].curve
        style = {"color": COLOURS[view], "linestyle": _DASHES[view], "linewidth": 2}
        false, true = zip(*curve, strict=True) if curve else ((), ())
        (handles[VIEW_SHORT[view]],) = whole.plot(false, true, **style)
        beginning.plot(*from_rate(curve, least), **style)
    (handles["a coin"],) = whole.plot([0, 1], [0, 1], color=theme.ink, linewidth=0.9)
    beginning.plot([least, 1], [least, 1], color=theme.ink, linewidth=0.9)
    whole.set(xlim=(-0.01, 1), ylim=(0, 1.01))
    beginning.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1))
    for axes, caption in ((whole, "everything"), (beginning, "few false alarms, enlarged")):
        figures.prepare_axes(axes, theme)
        axes.set_facecolor(theme.paper)
        axes.grid(color=theme.faint, linewidth=0.8)
        axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:.3g}%")
        axes.yaxis.set_major_formatter(lambda rate, _: f"{100 * rate:.3g}%")
        axes.tick_params(which="minor", colors=theme.faint)
        axes.set_xlabel("strangers taken for members", color=theme.ink)
        figures.add_caption(axes, caption, theme)
    whole.set_ylabel("members found", color=theme.ink)
    figures.add_legend(figure, handles, theme)
    return figures.png(figure)


def from_rate(
    curve: Sequence[tuple[float, float]], least: float
) -> tuple[list[float], list[float]]:
    """A curve from a rate of false positives on, beginning with what was found below that rate."""
    below = [true for false, true in curve if false <= least]
    points = [(least, max(below))] if below else []
    points += [(false, true) for false, true in curve if false > least]
    return [false for false, _ in points], [max(true, least) for _, true in points]


def _exposure(report: audits.AuditReport, theme: figures.Theme) -> bytes:
    """Mean exposure by view; a diamond for the canary that stands out most."""
    views = in_order(report, report.canaries)
    found = report.canaries
    figure, axes = _bars(
        views, {view: found[view].exposure for view in views}, theme, "{:.2f}".format
    )
    handles = {"mean of the planted canaries": axes.patches[0]}
    for y, view in enumerate(views):
        (handles["the one that stands out most"],) = axes.plot(
            found[view].most_exposed, y, "D", markersize=6, color=theme.paper,
            markeredgecolor=theme.ink, markeredgewidth=1.2, zorder=4,
        )  # fmt: skip
    axes.set_xlim(0, _room(axes, None))
    axes.set_xlabel("exposure in bits, with 95 % interval", color=theme.ink)
    figures.add_legend(figure, handles, theme)
    return figures.png(figure)


def _epsilon(report: audits.AuditReport, theme: figures.Theme) -> bytes:
    """What the canaries show at least, and the line of the promise, which no bar may cross."""
    views = in_order(report, report.canaries)
    bounds = {view: report.canaries[view].epsilon_low for view in views}
    numbers = {view: audits.Estimate(value=low, low=low, high=low) for view, low in bounds.items()}
    figure, axes = _bars(views, numbers, theme, "at least {:.3g}".format)
    handles = {"shown by the canaries, at least": axes.patches[0]}
    if report.promise is not None:
        label = f"promised: at most {report.promise.epsilon:.3g}"
        handles[label] = axes.axvline(
            report.promise.epsilon, color=theme.ink, linewidth=2, linestyle="--"
        )
    axes.set_xlim(0, max(_room(axes, None), 1.0))
    axes.set_xlabel("epsilon", color=theme.ink)
    figures.add_legend(figure, handles, theme)
    return figures.png(figure)


def _bars(
    views: Sequence[audits.View],
    numbers: Mapping[audits.View, audits.Estimate],
    theme: figures.Theme,
    form: Callable[[float], str],
) -> tuple[Any, Any]:
    """One bar a view with its interval and its number."""
    figure, axes = figures.new_figure(7.6, 1.5 + 0.46 * len(views), theme)
    for y, view in enumerate(views):
        number = numbers[view]
        axes.barh(y, number.value, height=0.6, color=COLOURS[view], zorder=2)
        if number.low < number.high:
            ends = [number.low, number.high]
            axes.plot(ends, [y, y], color=theme.ink, linewidth=1.4, marker="|", zorder=3)
        axes.annotate(
            form(number.value), (1.0, y), xycoords=("axes fraction", "data"),
            xytext=(6, 0), textcoords="offset points", va="center", fontsize=9, color=theme.ink,
        )  # fmt: skip
    axes.set_yticks(range(len(views)))
    figures.name_ticks(axes.yaxis, [VIEW_SHORT[view] for view in views])
    axes.set_ylim(len(views) - 0.4, -0.6)
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    return figure, axes


def _room(axes: Any, most: float | None) -> float:
    """Where an axis from zero ends: a little after the last mark."""
    right = float(axes.dataLim.x1) * 1.06
    return right if most is None else min(right, most * 1.02) or most

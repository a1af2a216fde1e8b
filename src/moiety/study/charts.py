"""The pictures of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from moiety.evaluate import figures
from moiety.study.paper import StudyReport, StudyRow

OURS = ("moiety", "moiety-plain")
ALONE = ("dense-ff", "dense-whole")
"""One owner's model: far off on the others' text, so left out where means are compared."""

_LEAST_SHARE = -0.5
"""Bars of gaps that open further than this are cut, and say how far they go."""


def draw(report: StudyReport, *, dark: bool) -> dict[str, bytes]:
    """Every chart the study has numbers for: name to PNG."""
    theme = figures.DARK if dark else figures.LIGHT
    pictures = {}
    gaps = [row for row in report.rows if row.gap_closed is not None and row.name != "anchor"]
    if gaps:
        pictures["gap-closed"] = _gap_closed(gaps, theme)
    if len(report.rows) > 1:
        pictures["difference"] = _difference(report, theme)
    if report.removal:
        prices = {owner: (price.value, price.interval) for owner, price in report.removal.items()}
        label = "bits per byte above the anchor, on the text of who left"
        pictures["removal"] = figures.price_bars(prices, label, theme)
    priced = [row for row in report.rows if row.cost and row.mean and row.method not in ALONE]
    if len(priced) > 1:
        pictures["inference"] = _against_cost(priced, "inference", theme)
        pictures["training"] = _against_cost(priced, "training", theme)
    return pictures


def _gap_closed(rows: Sequence[StudyRow], theme: figures.Theme) -> bytes:
    """One bar a row with its interval, and marks for the first tokens of documents."""
    figure, axes = figures.new_figure(7.6, 1.5 + 0.34 * len(rows), theme)
    handles = {}
    for y, row in enumerate(rows):
        assert row.gap_closed is not None
        value, (low, high) = row.gap_closed.value, row.gap_closed.interval
        colour = figures.BLUE if row.method in OURS else figures.GREY
        handles["whole documents"] = axes.barh(y, value, height=0.6, color=colour, zorder=2)
        axes.plot([low, high], [y, y], color=theme.ink, linewidth=1.2, marker="|", zorder=3)
        for count, mark in (("128", "o"), ("32", "D")):
            if count in row.gap_closed_first:
                share = row.gap_closed_first[count].value
                (handles[f"first {count} tokens"],) = axes.plot(
                    share, y, mark, markersize=4.5, color=figures.ORANGE, zorder=4,
                    markerfacecolor=theme.paper if count == "32" else figures.ORANGE,
                )  # fmt: skip
        axes.annotate(
            f"{100 * value:.1f} %", (1.0, y), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8.5, color=theme.ink,
        )  # fmt: skip
    axes.set_xlim(left=max(axes.get_xlim()[0], _LEAST_SHARE), right=max(axes.get_xlim()[1], 1.0))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.axvline(0, color=theme.ink, linewidth=1)
    axes.axvline(1, color=theme.ink, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)))
    figures.name_ticks(axes.yaxis, [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    axes.set_xlabel("gap closed: 0 % the anchor, 100 % the right expert", color=theme.ink)
    figures.add_legend(figure, handles, theme)
    return figures.png(figure)


def _difference(report: StudyReport, theme: figures.Theme) -> bytes:
    rows = [row for row in report.rows if row.name != "anchor"]
    texts = report.text_names
    values = [
        [row.difference[text].value if text in row.difference else None for text in texts]
        for row in rows
    ]
    caption = "bits per byte minus the anchor's; blue: better, red: worse"
    return figures.heat_map(values, [row.name for row in rows], texts, caption, theme)


def _against_cost(
    rows: Sequence[StudyRow], kind: Literal["inference", "training"], theme: figures.Theme
) -> bytes:
    """Quality against one cost: the lower and the further left the better."""
    points = sorted((point for row in rows for point in _points(row, kind)), key=lambda p: p[2])
    figure, axes = figures.new_figure(7.6, max(4.2, 0.6 + 0.22 * len(points)), theme)
    for row, x, y in points:
        colour = figures.BLUE if row.method in OURS else figures.ORANGE
        axes.plot(x, y, "o", markersize=6, color=colour, zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08, y=0.05)
    bottom, top = axes.get_ylim()
    heights = spread([(y - bottom) / (top - bottom) for _, _, y in points])
    for (row, x, y), height in zip(points, heights, strict=True):
        label = axes.annotate(
            row.name, (x, y), xycoords="data", xytext=(1.03, height), textcoords="axes fraction",
            va="center", fontsize=8, color=theme.ink,
            arrowprops={
                "arrowstyle": "-", "color": theme.faint, "shrinkA": 0, "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip
        label.set_parse_math(False)
    words = {"training": "FLOPs of training, all owners", "inference": "FLOPs of a token"}
    axes.set_xlabel(f"{words[kind]} (logarithmic)", color=theme.ink)
    axes.set_ylabel("mean bits per byte, lower is better", color=theme.ink)
    return figures.png(figure)


def _points(
    row: StudyRow, kind: Literal["inference", "training"]
) -> Iterator[tuple[StudyRow, float, float]]:
    """Where a row stands; what costs nothing has no place on the axis."""
    if row.cost is not None and row.mean is not None:
        cost = row.cost
        x = cost.training_flops if kind == "training" else cost.inference_flops_per_token
        if x > 0:
            yield row, x, row.mean.value


def spread(wanted: Sequence[float]) -> list[float]:
    """Ascending places in 0 to 1, moved apart so that none covers its neighbour."""
    apart = 1 / max(len(wanted), 18)
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + apart) if places else place)
    highest = 1.0
    for number in reversed(range(len(places))):
        places[number] = min(places[number], highest)
        highest = places[number] - apart
    return places

"""Heat maps of the routing, one small panel a text: shares by place, and experts used together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from moiety.evaluate.figures import (
    Theme,
    add_caption,
    blank_figure,
    name_ticks,
    png,
    prepare_axes,
    readable_on,
    shorten,
)

if TYPE_CHECKING:
    from moiety.evaluate.report import Evaluation

_WIDTH_INCHES = 10.4
_NUMBERED_COLUMNS = 10
"""Cells carry their number up to so many columns: more would not fit."""
_NAME_CHARS = 18


class Panel(NamedTuple):
    """One text's numbers, between 0 and 1: rows of columns, no more than there are labels.

    ``framed`` is the row to look at first, if there is one.
    """

    title: str
    values: Sequence[Sequence[float]]
    framed: int | None = None


class Labels(NamedTuple):
    """What stands at the axes of all panels. Columns with a word below them have short names."""

    rows: Sequence[str]
    columns: Sequence[str]
    below: str
    bar: str


def draw(evaluation: Evaluation, theme: Theme) -> dict[str, bytes]:
    """The heat maps that the evaluation has numbers for: name to PNG."""
    experts, pictures = evaluation.experts, {}
    if evaluation.routing_by_place:
        panels = [
            Panel(
                text,
                [shares[expert] for expert in experts],
                framed=experts.index(evaluation.right_expert(text)),
            )
            for text, shares in evaluation.routing_by_place.items()
        ]
        labels = Labels(experts, evaluation.routing_places, "tokens read", "share of the weight")
        pictures["routing-by-place"] = _panels(panels, labels, theme)
    if evaluation.used_together and len(experts) > 1:
        panels = [
            Panel(text, [[row[other] for other in experts] for row in (rows[e] for e in experts)])
            for text, rows in evaluation.used_together.items()
        ]
        labels = Labels(experts, experts, "", "share of tokens")
        pictures["used-together"] = _panels(panels, labels, theme)
    return pictures


def _panels(panels: Sequence[Panel], labels: Labels, theme: Theme) -> bytes:
    """Panels of equal size; rows are named at the left ones, columns at the lowest ones."""
    across = min(len(panels), _across(len(labels.columns)))
    down = math.ceil(len(panels) / across)
    height = 0.55 + 0.26 * max(3, len(labels.rows))
    upright = max(len(shorten(name, _NAME_CHARS)) for name in labels.columns)
    below = 0.4 if labels.below else 0.09 * upright
    figure = blank_figure(7.2 if across == 1 else _WIDTH_INCHES, 0.8 + height * down + below, theme)
    grid = figure.subplots(down, across, squeeze=False, subplot_kw={"facecolor": theme.paper})
    heat = LinearSegmentedColormap.from_list("amount", theme.amount)
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        prepare_axes(axes, theme, keep_frame=False)
        _fill(axes, panels[number], heat, len(labels.columns))
        _frame(axes, panels[number], theme)
        _name_rows(axes, labels.rows if number % across == 0 else ["" for _ in labels.rows])
        _name_columns(axes, labels, theme, lowest=number + across >= len(panels))
        add_caption(axes, shorten(panels[number].title, 32), theme)
    _colour_bar(figure, list(grid.flat)[: len(panels)], heat, labels.bar, theme)
    return png(figure)


def _across(columns: int) -> int:
    """Panels beside each other: fewer where a panel has many columns."""
    return 3 if columns <= 16 else 2 if columns <= 32 else 1


def _fill(axes: Any, panel: Panel, heat: Any, columns: int) -> None:
    """Cells from the left; what a panel has no numbers for stays empty."""
    axes.imshow(panel.values, cmap=heat, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xlim(-0.5, columns - 0.5)
    for y, row in enumerate(panel.values if columns <= _NUMBERED_COLUMNS else ()):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                color=readable_on(to_hex(heat(value))),
            )  # fmt: skip


def _frame(axes: Any, panel: Panel, theme: Theme) -> None:
    if panel.framed is None:
        return
    corner, width = (-0.5, panel.framed - 0.5), len(panel.values[0])
    frame = Rectangle(corner, width, 1, fill=False, edgecolor=theme.ink, linewidth=1.6)
    frame.set(clip_on=False, zorder=3)
    axes.add_patch(frame)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.tick_params(length=0, labelsize=8)
    axes.set_yticks(range(len(names)))
    name_ticks(axes.yaxis, [shorten(name, _NAME_CHARS) for name in names])


def _name_columns(axes: Any, labels: Labels, theme: Theme, *, lowest: bool) -> None:
    """Once a column of panels; names of experts, which are long, upright."""
    names = [shorten(name, _NAME_CHARS) for name in labels.columns]
    axes.set_xticks(range(len(names)))
    name_ticks(axes.xaxis, names if lowest else ["" for _ in names])
    if not labels.below:
        axes.tick_params(axis="x", rotation=90)
    elif lowest:
        axes.set_xlabel(labels.below, color=theme.ink, fontsize=9)


def _colour_bar(figure: Any, panels: Any, heat: Any, words: str, theme: Theme) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), heat), ax=panels, location="top", shrink=0.4, aspect=32,
        pad=0.02,
        format=PercentFormatter(1.0),
    )  # fmt: skip
    bar.set_label(words, color=theme.ink, fontsize=9)
    bar.ax.tick_params(colors=theme.ink, labelsize=8, length=0)
    bar.outline.set_visible(False)

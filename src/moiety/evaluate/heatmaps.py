"""Heat maps of the routing, one small panel a text: shares by layer, and experts used together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
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
    """One text's numbers, between 0 and 1: rows of columns."""

    title: str
    values: Sequence[Sequence[float]]


class Labels(NamedTuple):
    """What stands at the axes of all panels."""

    rows: Sequence[str]
    columns: Sequence[str]
    below: str
    bar: str


def draw(evaluation: Evaluation, theme: Theme) -> dict[str, bytes]:
    """The heat maps that the evaluation has numbers for: name to PNG."""
    experts, pictures = evaluation.experts, {}
    if evaluation.routing_by_layer:
        layers = len(next(iter(next(iter(evaluation.routing_by_layer.values())).values())))
        panels = [
            Panel(text, [shares[expert] for expert in experts])
            for text, shares in evaluation.routing_by_layer.items()
        ]
        labels = Labels(experts, [str(n) for n in range(layers)], "layer", "share of the weight")
        pictures["routing-by-layer"] = _panels(panels, labels, theme)
    if evaluation.used_together and len(experts) > 1:
        panels = [
            Panel(text, [[row[other] for other in experts] for row in (rows[e] for e in experts)])
            for text, rows in evaluation.used_together.items()
        ]
        labels = Labels(experts, experts, "", "share of tokens and layers")
        pictures["used-together"] = _panels(panels, labels, theme)
    return pictures


def _panels(panels: Sequence[Panel], labels: Labels, theme: Theme) -> bytes:
    """Panels of equal size; rows are named at the left ones, columns at the lowest ones."""
    across = min(len(panels), _across(len(labels.columns)))
    down = math.ceil(len(panels) / across)
    named = any(not label.isdigit() for label in labels.columns)
    height = 0.55 + 0.26 * max(3, len(labels.rows))
    below = 0.09 * max(len(shorten(name, _NAME_CHARS)) for name in labels.columns)
    figure = blank_figure(7.2 if across == 1 else _WIDTH_INCHES, 0.8 + height * down + below, theme)
    grid = figure.subplots(down, across, squeeze=False)
    heat = LinearSegmentedColormap.from_list("amount", theme.amount)
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        prepare_axes(axes, theme, keep_frame=False)
        _fill(axes, panels[number], heat, numbered=len(labels.columns) <= _NUMBERED_COLUMNS)
        _name_rows(axes, labels.rows if number % across == 0 else ["" for _ in labels.rows])
        lowest = number + across >= len(panels)
        _name_columns(axes, labels, theme, named=named, lowest=lowest)
        add_caption(axes, shorten(panels[number].title, 32), theme)
    _colour_bar(figure, list(grid.flat)[: len(panels)], heat, labels.bar, theme)
    return png(figure)


def _across(columns: int) -> int:
    """Panels beside each other: fewer where a panel has many columns."""
    return 3 if columns <= 16 else 2 if columns <= 32 else 1


def _fill(axes: Any, panel: Panel, heat: Any, *, numbered: bool) -> None:
    axes.imshow(panel.values, cmap=heat, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for y, row in enumerate(panel.values if numbered else ()):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                color=readable_on(to_hex(heat(value))),
            )  # fmt: skip


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.tick_params(length=0, labelsize=8)
    axes.set_yticks(range(len(names)))
    name_ticks(axes.yaxis, [shorten(name, _NAME_CHARS) for name in names])


def _name_columns(axes: Any, labels: Labels, theme: Theme, *, named: bool, lowest: bool) -> None:
    """Layers by number everywhere; names, which are long, upright and once a column of panels."""
    names = [shorten(name, _NAME_CHARS) for name in labels.columns]
    step = 1 if named else max(1, math.ceil(len(names) / 16) * 2 - 1)
    axes.set_xticks(range(0, len(names), step))
    name_ticks(axes.xaxis, names[::step] if lowest or not named else ["" for _ in names])
    if named:
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

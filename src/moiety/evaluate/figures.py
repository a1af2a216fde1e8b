"""The pieces that charts are drawn with: PNG, light or dark, colours colour-blind readers tell.

Figures are made without pyplot, which keeps every figure and its settings at module level.
Source: Okabe and Ito, Color Universal Design, 2008, for the palette.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

GREY, ORANGE, BLUE, SKY = "#8f959b", "#d55e00", "#0072b2", "#56b4e9"
PALETTE = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
HATCHES = ("", "//", "..", "xx")
_LABEL_CHARS = 24
_AMOUNT = (("#f3f5f6", "#08519c"), ("#20272d", "#7cc8f4"))

Interval = tuple[float, float]


class Theme(NamedTuple):
    """Colours that depend on the paper.

    ``heat`` goes from better over equal to worse, ``amount`` from nothing to everything.
    """

    paper: str
    ink: str
    faint: str
    heat: tuple[str, str, str]
    amount: tuple[str, str]


LIGHT = Theme("#ffffff", "#1d2329", "#d5dade", ("#5fa8d8", "#f6f7f7", "#ef8a62"), _AMOUNT[0])
DARK = Theme("#171c21", "#e4e8eb", "#3a434b", ("#1f78b4", "#20272d", "#b4532a"), _AMOUNT[1])


def heat_map(
    rows: Sequence[Sequence[float | None]],
    names: Sequence[str],
    columns: Sequence[str],
    caption: str,
    theme: Theme,
) -> bytes:
    """Differences as a table of colours: below zero is better; None is left empty."""
    width, height = max(7.2, 1.1 * len(columns) + 2), 1.4 + 0.36 * len(names)
    figure, axes = new_figure(width, height, theme, keep_frame=False)
    # Colour grows with the square root, so that one large gain does not pale all others.
    roots = [
        [math.copysign(math.sqrt(abs(value or 0.0)), value or 0.0) for value in row] for row in rows
    ]
    limit = max([abs(value) for row in roots for value in row] + [1e-6])
    heat = LinearSegmentedColormap.from_list("heat", theme.heat)
    colours = [[heat(0.5 + 0.5 * value / limit) for value in row] for row in roots]
    axes.imshow(colours, aspect="auto")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            text = "" if value is None else f"{round(value, 3) + 0.0:+.3f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color=theme.ink)
    axes.set_xticks(range(len(columns)))
    axes.set_yticks(range(len(names)))
    name_ticks(axes.xaxis, columns, slanted=len(columns) > 6)
    name_ticks(axes.yaxis, names)
    axes.tick_params(length=0)
    add_caption(axes, caption, theme)
    return png(figure)


def price_bars(prices: Mapping[str, tuple[float, Interval]], label: str, theme: Theme) -> bytes:
    """One bar a name, with its interval; the line at zero is the anchor."""
    figure, axes = new_figure(7.2, 1.3 + 0.42 * len(prices), theme)
    for y, (price, (low, high)) in enumerate(prices.values()):
        axes.barh(y, price, height=0.55, color=ORANGE, zorder=2)
        axes.plot([low, high], [y, y], color=theme.ink, linewidth=1.4, marker="|", zorder=3)
        axes.annotate(
            f"{round(price, 3) + 0.0:+.3f}",
            (max(high, price, 0), y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=theme.ink,
        )
    axes.axvline(0, color=theme.ink, linewidth=1)
    axes.set_yticks(range(len(prices)))
    name_ticks(axes.yaxis, list(prices))
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    axes.set_xlabel(label, color=theme.ink)
    return png(figure)


def new_figure(width: float, height: float, theme: Theme, *, keep_frame: bool = True) -> Any:
    """An empty figure and its axes; sizes in inches."""
    figure = blank_figure(width, height, theme)
    axes = figure.add_subplot(facecolor=theme.paper)
    prepare_axes(axes, theme, keep_frame=keep_frame)
    return figure, axes


def blank_figure(width: float, height: float, theme: Theme) -> Any:
    """A figure with nothing on it yet."""
    figure = Figure(figsize=(width, height), dpi=150, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def prepare_axes(axes: Any, theme: Theme, *, keep_frame: bool = True) -> None:
    """Axes in the theme's colours, with a frame on two sides or none."""
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(keep_frame and side in ("left", "bottom"))
        spine.set_color(theme.faint)


def error_bar(axes: Any, x: float, value: float, ends: Interval, theme: Theme) -> None:
    """An interval at the top of an upright bar."""
    low, high = ends
    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(x, value, yerr=error, color=theme.ink, linewidth=1.1, capsize=2.5, zorder=3)


def name_ticks(axis: Any, names: Any, *, slanted: bool = False) -> None:
    """Other people's names as the labels of an axis."""
    axis.set_ticklabels([shorten(name) for name in names])
    for label in axis.get_ticklabels():
        label.set_parse_math(False)  # a dollar sign in a name is a dollar sign
        if slanted:
            label.set(rotation=25, ha="right", rotation_mode="anchor")


def add_legend(figure: Any, handles: dict[str, Any], theme: Theme) -> None:
    """Above the axes, in as many columns as there is room for."""
    labels = [shorten(name, 32) for name in handles]
    # about eleven characters an inch, five for the patch and the space beside it
    room = 11 * figure.get_figwidth()
    in_one_row = sum(len(label) + 5 for label in labels) <= room
    columns = len(labels) if in_one_row else int(room / (max(map(len, labels)) + 5))
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="outside upper center",
        ncols=max(1, columns),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
    )
    for label in legend.get_texts():
        label.set_parse_math(False)


def add_caption(axes: Any, text: str, theme: Theme) -> None:
    """One line above the axes; a dollar sign in it is a dollar sign."""
    axes.set_title(text, fontsize=9, color=theme.ink, loc="left", parse_math=False)


def shorten(name: str, length: int = _LABEL_CHARS) -> str:
    """Cut in the middle: names of a kind differ at the end, names of different kinds before."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[len(name) - (length - length // 2 - 1) :]}"


def readable_on(colour: str) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"


def png(figure: Any) -> bytes:
    """A figure's bytes: the same numbers make the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks is drawn as boxes; the page has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # without the library's version in it, the same numbers make the same bytes
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

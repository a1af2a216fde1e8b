"""What every picture of a report is drawn with: paper light or dark, labels, legend, PNG.

Figures are made without pyplot, which keeps every figure and its settings at module level.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_LABEL_CHARS = 24
_AMOUNT = (("#f3f5f6", "#08519c"), ("#20272d", "#7cc8f4"))


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


def new_figure(width: float, height: float, theme: Theme, *, keep_frame: bool = True) -> Any:
    """A figure with one set of axes; sizes in inches."""
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


def name_ticks(axis: Any, names: Any, *, slanted: bool = False) -> None:
    """Names on ticks that are set already; long ones are cut."""
    axis.set_ticklabels([shorten(name) for name in names])
    for label in axis.get_ticklabels():
        label.set_parse_math(False)  # a dollar sign in a name is a dollar sign
        if slanted:
            label.set(rotation=25, ha="right", rotation_mode="anchor")


def legend(figure: Any, handles: dict[str, Any], theme: Theme) -> None:
    """The legend above the axes, in as many rows as its names need."""
    labels = [shorten(name, 32) for name in handles]
    # about eleven characters an inch, five for the patch and the space beside it
    room = 11 * figure.get_figwidth()
    in_one_row = sum(len(label) + 5 for label in labels) <= room
    columns = len(labels) if in_one_row else int(room / (max(map(len, labels)) + 5))
    drawn = figure.legend(
        list(handles.values()),
        labels,
        loc="outside upper center",
        ncols=max(1, columns),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
    )
    for label in drawn.get_texts():
        label.set_parse_math(False)


def caption(axes: Any, text: str, theme: Theme) -> None:
    """One line above the axes; a dollar sign in it is a dollar sign."""
    axes.set_title(text, fontsize=9, color=theme.ink, loc="left", parse_math=False)


def shorten(name: str, length: int = _LABEL_CHARS) -> str:
    """Cut in the middle: names of a kind differ at the end, names of different kinds before."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[len(name) - (length - length // 2 - 1) :]}"


def readable_on(colour: str) -> str:
    """Black or white, whichever is read on a colour such as ``#56b4e9``."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"


def png(figure: Any) -> bytes:
    """The figure's bytes: the same for the same numbers."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks is drawn as boxes; the page has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # without the library's version in it, the same numbers make the same bytes
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()

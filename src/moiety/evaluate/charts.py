"""The pictures of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import PercentFormatter

from moiety.evaluate import heatmaps
from moiety.evaluate.figures import (
    BLUE,
    DARK,
    GREY,
    HATCHES,
    LIGHT,
    PALETTE,
    SKY,
    Theme,
    add_legend,
    error_bar,
    heat_map,
    name_ticks,
    new_figure,
    png,
    price_bars,
    readable_on,
)

if TYPE_CHECKING:
    from moiety.evaluate.report import Evaluation


def draw(evaluation: Evaluation, *, dark: bool) -> dict[str, bytes]:
    """Every chart the evaluation has numbers for: name to PNG."""
    theme = DARK if dark else LIGHT
    pictures = {"bits-per-byte": _bits_per_byte(evaluation, theme)}
    if "anchor" in evaluation.models and len(evaluation.models) > 1:
        pictures["difference"] = _difference(evaluation, theme)
    if any(short.gap_closed is not None for short in evaluation.beginnings):
        pictures["short-texts"] = _short_texts(evaluation, theme)
    if evaluation.removal:
        pictures["removal"] = _removal(evaluation, theme)
    if evaluation.routing:
        pictures["routing"] = _routing(evaluation, theme)
    return pictures | heatmaps.draw(evaluation, theme)


def _bits_per_byte(evaluation: Evaluation, theme: Theme) -> bytes:
    """For every text a group of bars: the anchor, the right expert alone, the whole release."""
    texts = evaluation.text_names
    figure, axes = new_figure(max(7.2, 1.3 * len(texts)), 3.8, theme)
    kinds = (
        ("anchor alone", GREY, "anchor"),
        ("anchor + the text's own expert", SKY, "anchor+{}"),
        ("whole release", BLUE, "all"),
    )
    handles: dict[str, Any] = {}
    for place, text in enumerate(texts):
        there = [kind for kind in kinds if kind[2].format(text) in evaluation.models]
        for number, (label, colour, model) in enumerate(there):
            x = place + 0.27 * (number - (len(there) - 1) / 2)
            handles[label] = _bar(evaluation, axes, x, colour, model.format(text), text, theme)
    axes.set_xticks(range(len(texts)))
    name_ticks(axes.xaxis, texts, slanted=len(texts) > 6)
    axes.set_ylabel("bits per byte, lower is better", color=theme.ink)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    add_legend(figure, {kind[0]: handles[kind[0]] for kind in kinds if kind[0] in handles}, theme)
    return png(figure)


def _bar(
    evaluation: Evaluation, axes: Any, x: float, colour: str, model: str, text: str, theme: Theme
) -> Any:
    value = evaluation.bits_per_byte[model][text]
    bar = axes.bar(x, value, width=0.25, color=colour, zorder=2)
    error_bar(axes, x, value, evaluation.bits_per_byte_interval[model][text], theme)
    high = max(value, evaluation.bits_per_byte_interval[model][text][1])
    axes.annotate(
        f"{value:.2f}",
        (x, high),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7.5,
        color=theme.ink,
    )
    return bar


def _difference(evaluation: Evaluation, theme: Theme) -> bytes:
    """A heat map: models by texts, what each gains or loses against the anchor."""
    models = [model for model in evaluation.models if model != "anchor"]
    texts = evaluation.text_names
    rows = [[evaluation.difference(model, text) for text in texts] for model in models]
    caption = "bits per byte minus the anchor's; blue: better, red: worse"
    return heat_map(rows, models, texts, caption, theme)


def _short_texts(evaluation: Evaluation, theme: Theme) -> bytes:
    """Gap closed on the first tokens of documents and on whole ones, each with its interval."""
    rows = [
        (f"first {short.first_tokens} tokens", short.gap_closed, short.gap_closed_interval)
        for short in evaluation.beginnings
    ]
    rows.append(("everything", evaluation.gap_closed, evaluation.gap_closed_interval))
    figure, axes = new_figure(7.2, 1.1 + 0.42 * len(rows), theme)
    for y, (_, gap, ends) in enumerate(rows):
        if gap is None:
            continue
        if ends is not None:
            axes.plot(ends, [y, y], color=theme.ink, linewidth=1.4, marker="|", zorder=2)
        axes.plot(gap, y, "o", color=BLUE, markersize=8, zorder=3)
        axes.annotate(
            f"{100 * gap:.1f}", (gap, y), xytext=(0, 7), textcoords="offset points",
            ha="center", fontsize=9, color=theme.ink,
        )  # fmt: skip
    axes.axvline(1, color=theme.ink, linewidth=1)
    axes.set_yticks(range(len(rows)))
    name_ticks(axes.yaxis, [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    axes.set_xlabel("gap closed; 100 %: as good as who knows the owner", color=theme.ink)
    return png(figure)


def _removal(evaluation: Evaluation, theme: Theme) -> bytes:
    """One bar an owner, with its interval; the line at zero is the anchor."""
    prices = {
        owner: (price, evaluation.removal_interval[owner])
        for owner, price in evaluation.removal.items()
    }
    return price_bars(prices, "bits per byte above the anchor, on the text of who left", theme)


def _routing(evaluation: Evaluation, theme: Theme) -> bytes:
    """One stacked bar a text: which experts the router gave it to."""
    texts = [text for text in evaluation.text_names if text in evaluation.routing]
    figure, axes = new_figure(7.2, 1.5 + 0.42 * len(texts), theme)
    handles = {}
    starts = [0.0] * len(texts)
    for number, expert in enumerate(evaluation.experts):
        shares = [evaluation.routing[text].get(expert, 0.0) for text in texts]
        colour = GREY if expert == "anchor" else PALETTE[(number - 1) % len(PALETTE)]
        hatch = "" if expert == "anchor" else HATCHES[(number - 1) // len(PALETTE) % len(HATCHES)]
        handles[expert] = axes.barh(
            range(len(texts)), shares, left=starts, height=0.62, color=colour, hatch=hatch,
            edgecolor=theme.paper, linewidth=0.8, zorder=2,
        )  # fmt: skip
        for y, share in enumerate(shares):
            if share >= 0.07:
                axes.text(
                    starts[y] + share / 2, y, f"{100 * share:.0f}", ha="center", va="center",
                    fontsize=9, color=readable_on(colour), zorder=3,
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
                )  # fmt: skip
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_xlim(0, max(1.0, *starts))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_yticks(range(len(texts)))
    name_ticks(axes.yaxis, texts)
    axes.invert_yaxis()
    axes.set_xlabel("share of the router's weight (rows are texts)", color=theme.ink)
    add_legend(figure, handles, theme)
    return png(figure)

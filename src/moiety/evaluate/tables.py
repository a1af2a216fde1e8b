"""An evaluation on the terminal: the same numbers as in the paper and on the page."""

from __future__ import annotations

from statistics import fmean

from rich.table import Table
from rich.text import Text

from moiety.evaluate.pages import show, show_interval, show_share, show_signed
from moiety.evaluate.report import Evaluation, Interval


def render_table(evaluation: Evaluation) -> list[Table]:
    """The tables for the terminal: bits per byte, difference to the anchor, removal, routing."""
    tables = [_matrix(evaluation)]
    if "anchor" in evaluation.models and len(evaluation.models) > 1:
        tables.append(_differences(evaluation))
    if evaluation.beginnings and {"anchor", "all"} <= set(evaluation.models):
        tables.append(_beginnings(evaluation))
    if evaluation.removal:
        tables.append(_removal(evaluation))
    if evaluation.routing:
        tables.append(_routing(evaluation))
    return tables


def _table(title: str, caption: str, first: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        # Text, not str: names are other people's, and square brackets are markup to rich.
        table.add_column(Text(column), justify="right")
    return table


def _matrix(evaluation: Evaluation) -> Table:
    caption = "lower is better; bold: the best of its column"
    if evaluation.gap_closed is not None:
        caption += f"; gap closed {show_share(evaluation.gap_closed)}"
    table = _table("Bits per byte", caption, "model", evaluation.text_names)
    for model in evaluation.models:
        cells = [Text(model)]
        for text in evaluation.text_names:
            value = evaluation.bits_per_byte[model][text]
            low, high = evaluation.bits_per_byte_interval[model][text]
            style = "bold" if value == evaluation.best(text) else ""
            cells.append(
                Text(show(value), style).append(f" ±{(high - low) / 2:.3f}", "not bold dim")
            )
        table.add_row(*cells)
    return table


def _differences(evaluation: Evaluation) -> Table:
    table = _table(
        "Difference to the anchor", "below zero is better", "model", evaluation.text_names
    )
    for model in evaluation.models:
        if model != "anchor":
            row = [evaluation.difference(model, text) for text in evaluation.text_names]
            cells = [
                Text(show_signed(value), "green" if value < 0 else "red" if value > 0 else "")
                for value in row
            ]
            table.add_row(Text(model), *cells)
    return table


def _beginnings(evaluation: Evaluation) -> Table:
    caption = "bits per token: mean over texts; right: the anchor with the text's own expert"
    columns = ("gap closed", "95 % interval", "anchor", "right", "all")
    table = _table("Short texts: bits per token", caption, "of each document", columns)
    for short in evaluation.beginnings:
        bits = [
            fmean(short.bits_per_token[model(text)][text] for text in evaluation.text_names)
            for model in (lambda _: "anchor", evaluation.right_model, lambda _: "all")
        ]
        gap = _gap_cells(short.gap_closed, short.gap_closed_interval)
        table.add_row(f"first {short.first_tokens} tokens", *gap, *map(show, bits))
    table.add_row("everything", *_gap_cells(evaluation.gap_closed, evaluation.gap_closed_interval))
    return table


def _gap_cells(gap: float | None, ends: Interval | None) -> tuple[str, str]:
    return (
        "-" if gap is None else show_share(gap),
        "-" if ends is None else f"{show_share(ends[0])} to {show_share(ends[1])}",
    )


def _removal(evaluation: Evaluation) -> Table:
    caption = "on an owner's text, the release without that owner minus the anchor; 0 is ideal"
    table = _table("Price of removal, bits per byte", caption, "owner", ("price", "95 % interval"))
    for owner, price in evaluation.removal.items():
        ends = show_interval(evaluation.removal_interval[owner], signed=True)
        table.add_row(Text(owner), show_signed(price), ends)
    return table


def _routing(evaluation: Evaluation) -> Table:
    table = _table("Routing", "share of the router's weight", "text", evaluation.experts)
    pairs = evaluation.most_used_pairs
    if pairs:
        table.add_column("most used together")
    for text, shares in evaluation.routing.items():
        cells = [Text(show_share(shares.get(name, 0.0))) for name in evaluation.experts]
        if text in pairs:
            one, other = pairs[text]
            share = evaluation.used_together[text][one][other]
            cells.append(Text(f"{one} and {other}, {show_share(share)}"))
        table.add_row(Text(text), *cells)
    return table

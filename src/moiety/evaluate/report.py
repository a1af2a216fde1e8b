"""An evaluation as a paper, on the terminal, as one JSON line and as one page.

Every number is shown with its 95 % interval; every view shows the same numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from rich.table import Table
from rich.text import Text

from moiety.evaluate import charts, pages
from moiety.evaluate.pages import show, show_interval, show_share, show_signed

Interval = tuple[float, float]


class TextFacts(BaseModel):
    """How much of a text was scored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    documents: int
    tokens: int
    bytes: int


class Evaluation(BaseModel):
    """What an evaluation measured. ``bits_per_byte[model][text]``, ``routing[text][expert]``.

    Models are named for the experts they use: ``anchor``, ``anchor+NAME``, ``all``, ``all-NAME``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["moiety.report/1"] = "moiety.report/1"
    kind: Literal["evaluation"] = "evaluation"
    release: str
    routing_mode: Literal["context", "token"]
    top_k: int
    texts: tuple[TextFacts, ...]
    models: tuple[str, ...]
    bits_per_byte: dict[str, dict[str, float]]
    bits_per_byte_interval: dict[str, dict[str, Interval]]
    gap_closed: float | None
    gap_closed_interval: Interval | None
    removal: dict[str, float]
    removal_interval: dict[str, Interval]
    routing: dict[str, dict[str, float]]
    command: str
    seconds: float
    versions: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Evaluation:
        cells = {(model, text) for model in self.models for text in self.text_names}
        for table in (self.bits_per_byte, self.bits_per_byte_interval):
            if {(model, text) for model, row in table.items() for text in row} != cells:
                raise ValueError("bits per byte are not given for every model on every text")
        if self.removal.keys() != self.removal_interval.keys():
            raise ValueError("a price of removal without its interval")
        return self

    @property
    def text_names(self) -> tuple[str, ...]:
        """The texts in order."""
        return tuple(text.name for text in self.texts)

    @property
    def experts(self) -> tuple[str, ...]:
        """Every expert that got a share of the routing, the anchor first."""
        names = {expert for shares in self.routing.values() for expert in shares}
        return tuple(sorted(names, key=lambda name: (name != "anchor", name)))

    def best(self, text: str) -> float:
        """The lowest bits per byte of any model on ``text``."""
        return min(self.bits_per_byte[model][text] for model in self.models)

    def difference(self, model: str, text: str) -> float:
        """Bits per byte of ``model`` minus the anchor's: below zero is better."""
        return self.bits_per_byte[model][text] - self.bits_per_byte["anchor"][text]


def describe_model(name: str) -> str:
    """What a model's name means, for somebody who reads it the first time."""
    if name == "anchor":
        return "the public model alone, no owner's expert"
    if name == "all":
        return "the whole release: the anchor and every expert, the router decides"
    if name.startswith("anchor+"):
        return f"the anchor and the expert of {name.removeprefix('anchor+')}, nobody else's"
    if name.startswith("all-"):
        return f"the release after {name.removeprefix('all-')} has left"
    return "another way to combine the experts"


def to_json_line(evaluation: Evaluation) -> dict[str, Any]:
    """What ``--json`` prints: the paper without what only a reader of the page wants."""
    paper = evaluation.model_dump(mode="json")
    line = {key: paper[key] for key in ("bits_per_byte", "gap_closed", "removal")}
    line["intervals"] = {key: paper[f"{key}_interval"] for key in line}
    for key in ("release", "routing_mode", "top_k", "models", "texts", "routing", "seconds"):
        line[key] = paper[key]
    return line


def render_table(evaluation: Evaluation) -> list[Table]:
    """The tables for the terminal: bits per byte, difference to the anchor, removal, routing."""
    tables = [_matrix(evaluation)]
    if "anchor" in evaluation.models and len(evaluation.models) > 1:
        tables.append(_differences(evaluation))
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


def _removal(evaluation: Evaluation) -> Table:
    caption = "on an owner's text, the release without that owner minus the anchor; 0 is ideal"
    table = _table("Price of removal, bits per byte", caption, "owner", ("price", "95 % interval"))
    for owner, price in evaluation.removal.items():
        ends = show_interval(evaluation.removal_interval[owner], signed=True)
        table.add_row(Text(owner), show_signed(price), ends)
    return table


def _routing(evaluation: Evaluation) -> Table:
    table = _table(
        "Routing", "share of the router's weight, mean over layers", "text", evaluation.experts
    )
    for text, shares in evaluation.routing.items():
        table.add_row(
            Text(text), *(show_share(shares.get(name, 0.0)) for name in evaluation.experts)
        )
    return table


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Writes ``report.json``, ``report.html`` (needs nothing else) and the charts as PNG.

    Raises:
        StateError: ``folder`` exists already and is not empty.
    """
    light = charts.draw(evaluation, dark=False)
    page = render_page(evaluation, light, charts.draw(evaluation, dark=True))
    pages.write_folder(folder, evaluation.model_dump(mode="json"), page, light)


def render_page(evaluation: Evaluation, light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """One HTML page with everything in it: no script, nothing to fetch."""
    filters = {"meaning": describe_model}
    return pages.render("report.html.j2", light, dark, filters=filters, report=evaluation)

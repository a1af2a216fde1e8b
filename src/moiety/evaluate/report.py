"""An evaluation as a paper, as one JSON line and as one page.

Every number is shown with its 95 % interval; every view shows the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from moiety.evaluate import charts, pages
from moiety.evaluate.routing import USED_WEIGHT, TokenShare, most_used_pair, show_token

Interval = tuple[float, float]


class TextFacts(BaseModel):
    """How much of a text was scored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: str
    documents: int
    tokens: int
    bytes: int


class ShortTexts(BaseModel):
    """What is left of the numbers when a document ends after its first tokens.

    ``tokens`` are those scored of each text. Bits are per token: how many bytes the first tokens
    of a document are, a tokenizer does not tell.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    first_tokens: int
    tokens: dict[str, int]
    bits_per_token: dict[str, dict[str, float]]
    bits_per_token_interval: dict[str, dict[str, Interval]]
    gap_closed: float | None
    gap_closed_interval: Interval | None


class Evaluation(BaseModel):
    """What an evaluation measured. ``bits_per_byte[model][text]``, ``routing[text][expert]``.

    ``routing_by_place[text][expert]`` has a share for each of ``routing_places``, fewer where the
    text's documents end before; ``used_together[text]`` has one for each two experts,
    ``tokens_taken`` the tokens at which an expert got most above its mean.
    Models are named for the experts they use: ``anchor``, ``anchor+NAME``, ``all``, ``all-NAME``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["moiety.report/1"] = "moiety.report/1"
    kind: Literal["evaluation"] = "evaluation"
    release: str
    top_k: int
    texts: tuple[TextFacts, ...]
    models: tuple[str, ...]
    bits_per_byte: dict[str, dict[str, float]]
    bits_per_byte_interval: dict[str, dict[str, Interval]]
    gap_closed: float | None
    gap_closed_interval: Interval | None
    beginnings: tuple[ShortTexts, ...] = ()
    removal: dict[str, float]
    removal_interval: dict[str, Interval]
    routing: dict[str, dict[str, float]]
    routing_places: tuple[str, ...] = ()
    routing_by_place: dict[str, dict[str, tuple[float, ...]]] = {}
    used_together: dict[str, dict[str, dict[str, float]]] = {}
    tokens_taken: dict[str, tuple[TokenShare, ...]] = {}
    command: str
    seconds: float
    versions: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Evaluation:
        cells = {(model, text) for model in self.models for text in self.text_names}
        tables: list[dict[str, dict[str, Any]]] = [self.bits_per_byte, self.bits_per_byte_interval]
        for short in self.beginnings:
            tables += [short.bits_per_token, short.bits_per_token_interval]
        for table in tables:
            if {(model, text) for model, row in table.items() for text in row} != cells:
                raise ValueError("bits are not given for every model on every text")
        if self.removal.keys() != self.removal_interval.keys():
            raise ValueError("a price of removal without its interval")
        for detail in (self.routing_by_place, self.used_together):
            if detail and detail.keys() != self.routing.keys():
                raise ValueError("routing is not told of every text")
        rows = [shares for text in self.routing_by_place.values() for shares in text.values()]
        if any(len(shares) > len(self.routing_places) for shares in rows):
            raise ValueError("shares at places without a name")
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

    @property
    def most_used_pairs(self) -> dict[str, tuple[str, str]]:
        """By text the two experts that are used together most often, where there are two."""
        pairs = {text: most_used_pair(rows) for text, rows in self.used_together.items()}
        return {text: pair for text, pair in pairs.items() if pair is not None}

    def right_expert(self, text: str) -> str:
        """The expert that should read ``text``: its owner's, the anchor where there is none."""
        return text if text in self.experts else "anchor"

    def right_model(self, text: str) -> str:
        """The model of somebody who knows whose text it is."""
        own = f"anchor+{text}"
        return own if own in self.models else "anchor"

    def best(self, text: str) -> float:
        """The lowest bits per byte of any model on ``text``."""
        return lowest(self.bits_per_byte, text)

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
    for key in ("release", "top_k", "models", "texts", "routing", "seconds"):
        line[key] = paper[key]
    line["beginnings"] = paper["beginnings"]
    line["routing_detail"] = _routing_summary(evaluation)
    return line


def _routing_summary(evaluation: Evaluation) -> dict[str, Any]:
    """Where the detail is in the report's folder; tokens stay there, for they quote the texts."""
    return {
        "most_used_together": {
            text: {"experts": pair, "share": evaluation.used_together[text][pair[0]][pair[1]]}
            for text, pair in evaluation.most_used_pairs.items()
        },
    }


def lowest(values: dict[str, dict[str, float]], text: str) -> float:
    """The lowest of all models on ``text``."""
    return min(row[text] for row in values.values())


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
    filters: dict[str, Callable[..., Any]] = {
        "meaning": describe_model,
        "token": show_token,
        "lowest": lowest,
    }
    return pages.render(
        "report.html.j2", light, dark, filters=filters, report=evaluation, used_weight=USED_WEIGHT
    )

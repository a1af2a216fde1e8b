"""``report.json`` of a study: every number of its tables, each with its 95 % interval."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from moiety.evaluate import report

TextFacts = report.TextFacts


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Number(_Part):
    """A number of the mean over seeds, the ends of its 95 % interval, and that of each seed."""

    value: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]


class RowCost(_Part):
    """What a row takes. FLOPs of training are those of all owners together, without the anchor."""

    training_flops: float
    inference_flops_per_token: float
    parameters: int


class StudyRow(_Part):
    """One way to merge. ``bits_per_byte`` and ``difference`` (to the anchor) go by text.

    ``mean`` is over the texts; ``gap_closed_first`` looks at the first tokens of each document,
    by how many.
    """

    name: str
    method: str
    told: str
    bits_per_byte: dict[str, Number]
    difference: dict[str, Number]
    mean: Number | None
    gap_closed: Number | None
    gap_closed_first: dict[str, Number]
    cost: RowCost | None


class Finding(_Part):
    """One line of the summary: a share, a difference in bits per byte, or a share of a cost.

    A cost is counted, not measured: its interval is the number itself.
    """

    told: str
    unit: Literal["share", "bits", "cost"]
    number: Number


class StudyReport(_Part):
    """What a study found."""

    format: Literal["moiety.study/1"] = "moiety.study/1"
    name: str
    seeds: tuple[int, ...]
    owners: tuple[str, ...]
    texts: tuple[TextFacts, ...]
    rows: tuple[StudyRow, ...]
    removal: dict[str, Number]
    findings: tuple[Finding, ...]
    seconds: float
    versions: dict[str, str]

    @property
    def text_names(self) -> tuple[str, ...]:
        """The texts in order, the public one first."""
        return tuple(text.name for text in self.texts)

    def best(self, text: str | None) -> float:
        """The lowest bits per byte of any row on a text, or in the mean."""
        cells = [row.mean if text is None else row.bits_per_byte.get(text) for row in self.rows]
        return min(cell.value for cell in cells if cell is not None)

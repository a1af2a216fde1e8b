"""A study's report from its scores: the table's rows, the price of removal, the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version

from moiety.study.bills import Bills
from moiety.study.methods import Row
from moiety.study.paper import Finding, Number, RowCost, StudyReport, StudyRow, TextFacts
from moiety.study.places import Study
from moiety.study.plan import PUBLIC
from moiety.study.run import seconds_spent
from moiety.study.scores import FIRST_TOKENS
from moiety.study.table import Measured, Scores

RIVALS = {
    "btm-all": "the mixture of the dense models' predictions",
    "btm-pairs": "the mixture of the pairs' predictions",
    "joint-1x": "joint training at equal FLOPs",
    "joint-experts": "joint training of experts and router alone at equal FLOPs",
    "recipe": "the reference recipe",
}
"""Rows that the release is set against in the summary."""


def report_on(study: Study) -> StudyReport:
    """Everything that the scores say; all of them must stand."""
    scores = Scores(study)
    whole = scores.measure()
    first = {count: scores.measure(count) for count in FIRST_TOKENS}
    bills = Bills(study)
    table = tuple(_row(row, whole, first, bills.of(row)) for row in scores.rows)
    removal = _removal(study, whole)
    return StudyReport(
        name=study.plan.paper.name,
        seeds=study.plan.paper.seeds,
        owners=study.plan.owners,
        texts=tuple(
            TextFacts(
                name=text,
                documents=len(sample.bytes),
                tokens=int(sample.counted.sum()),
                bytes=int(sample.bytes.sum()),
            )
            for text, sample in scores.samples.items()
        ),
        rows=table,
        removal=removal,
        findings=tuple(_findings(table, whole, removal)),
        seconds=seconds_spent(study),
        versions={name: version(name) for name in ("moiety", "torch", "transformers")},
    )


def _row(row: Row, whole: Measured, first: dict[int, Measured], cost: RowCost | None) -> StudyRow:
    texts = [text for text in whole.texts if row.has_public or text != PUBLIC]
    begins = {str(count): part.gap_closed(row.name) for count, part in first.items()}
    return StudyRow(
        name=row.name,
        method=row.method,
        told=row.told,
        bits_per_byte={text: whole.on(row.name, text) for text in texts},
        difference={text: whole.difference(row.name, text) for text in texts},
        mean=whole.mean(row.name) if row.has_public else None,
        gap_closed=whole.gap_closed(row.name) if row.has_public else None,
        gap_closed_first={
            count: gap for count, gap in begins.items() if gap is not None and row.has_public
        },
        cost=cost,
    )


def _removal(study: Study, whole: Measured) -> dict[str, Number]:
    """By owner: the release without it minus the anchor, on its text."""
    if "removal" not in whole.rows:
        return {}
    return {owner: whole.difference("removal", owner) for owner in study.plan.owners}


def _findings(
    table: tuple[StudyRow, ...], whole: Measured, removal: Mapping[str, Number]
) -> Iterator[Finding]:
    """The questions that a release is judged by, as far as this study answers them."""
    by_name = {row.name: row for row in table}
    ours = [row for row in table if row.method == "moiety"]
    best = min(ours, key=lambda row: row.mean.value if row.mean else 0.0, default=None)
    if best is not None:
        yield from _gaps("gap closed", best)
        yield _bits(f"{best.name} on public text, against the anchor", best.difference[PUBLIC])
    if "moiety-plain" in by_name:
        yield from _gaps("gap closed, plain checkpoint", by_name["moiety-plain"])
    if removal:
        owner, price = _worst(removal)
        yield _bits(f"worst removal ({owner}), against the anchor", price)
    if "moiety-k1" in by_name:
        text, less = _worst(by_name["moiety-k1"].difference)
        yield _bits(f"one expert run, worst text ({text}), against the anchor", less)
    for name, told in RIVALS.items():
        if best is not None and name in by_name:
            yield from _against(best, by_name[name], told, whole)


def _against(ours: StudyRow, other: StudyRow, told: str, whole: Measured) -> Iterator[Finding]:
    above = whole.ratio(ours.name, other.name)
    yield Finding(told=f"{ours.name}: mean bits, above {told}", unit="share", number=above)
    text, less = _worst(
        {text: whole.difference(ours.name, text, other.name) for text in whole.texts}
    )
    yield _bits(f"{ours.name}: worst text ({text}), against {told}", less)
    if ours.cost and other.cost:
        share = ours.cost.inference_flops_per_token / other.cost.inference_flops_per_token
        exact = Number(value=share, interval=(share, share), by_seed=())
        yield Finding(told=f"{ours.name}: FLOPs of a token, of {told}", unit="cost", number=exact)


def _gaps(told: str, row: StudyRow) -> Iterator[Finding]:
    if row.gap_closed is not None:
        yield Finding(told=f"{told} ({row.name})", unit="share", number=row.gap_closed)
    for count, gap in row.gap_closed_first.items():
        words = f"{told} ({row.name}), first {count} tokens of a document"
        yield Finding(told=words, unit="share", number=gap)


def _bits(told: str, number: Number) -> Finding:
    return Finding(told=told, unit="bits", number=number)


def _worst(values: Mapping[str, Number]) -> tuple[str, Number]:
    return max(values.items(), key=lambda item: item[1].value)

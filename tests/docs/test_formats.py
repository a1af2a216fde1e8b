"""``docs/formats.md`` tells every field of every paper and every limit, and nothing else."""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from tests.docs.pages import DOCS, rows, sections

from moiety.bundle import audits, papers
from moiety.bundle.papers import Envelope
from moiety.data.packed import PackedPaper
from moiety.evaluate.report import Evaluation
from moiety.merge.exporting import ExportPaper
from moiety.merge.roster import Roster
from moiety.privacy.ledger import LedgerPaper
from moiety.serve.policy import PolicyPaper
from moiety.study.paper import StudyReport
from moiety.study.plan import StudyPlan
from moiety.train.trained import TrainedPaper

FORMATS = DOCS / "formats.md"
PAPERS: dict[str, type[BaseModel]] = {
    "anchor.json": papers.AnchorPaper,
    "run.json": papers.RunPaper,
    "ledger.json": LedgerPaper,
    "canaries.json": papers.Canaries,
    "trained.json": TrainedPaper,
    "manifest.json": papers.Manifest,
    "signature.json, order.json, receipt.json: the envelope": Envelope,
    "The order inside": papers.WithdrawalOrder,
    "The receipt inside": papers.Receipt,
    "proxies.json": papers.Proxies,
    "roster.json": Roster,
    "export.json": ExportPaper,
    "terms.toml": papers.Terms,
    "audit-policy.toml": audits.Policy,
    "packed.json": PackedPaper,
    "report.json": Evaluation,
    "report.json of an audit": audits.AuditReport,
    "policy.toml": PolicyPaper,
    "STUDY.toml": StudyPlan,
    "report.json of a study": StudyReport,
}
LIMITS = "Limits, and why"


def models_in(annotation: Any, mark: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The models inside an annotation, each behind ``[]`` for a list, ``.*`` for a table."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield mark, annotation
        return
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from models_in(inside[0], mark)
    elif origin in (typing.Union, types.UnionType):
        for one in inside:
            yield from models_in(one, mark)
    elif origin is tuple:
        yield from models_in(inside[0], f"{mark}[]")
    elif origin is dict:
        yield from models_in(inside[1], f"{mark}.*")


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a paper, those of its parts behind a dot: ``experts[].terms.licence``."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for mark, inner in models_in(field.annotation):
            yield from fields(inner, f"{prefix}{name}{mark}.")


def _told(section: str) -> set[str]:
    """The fields a section's tables tell, ``a.{x,y}`` being short for ``a.x`` and ``a.y``."""
    found = set()
    for row in rows(section):
        for name in re.findall(r"`([^`]+)`", row[0]):
            head, brace, rest = name.partition("{")
            inner, _, tail = rest.partition("}")
            found |= {head + part.strip() + tail for part in inner.split(",")} if brace else {name}
    return found


@pytest.mark.parametrize("name", PAPERS)
def test_every_field_of_a_paper_is_told_and_no_other(name: str) -> None:
    section = sections(FORMATS)[name]
    real = set(fields(PAPERS[name]))
    assert _told(section) ^ real == set()


@pytest.mark.parametrize("name", PAPERS)
def test_the_version_of_a_paper_is_told(name: str) -> None:
    field = PAPERS[name].model_fields.get("format")
    if field is None:
        pytest.skip("not a paper with a version: it is written by hand")
    (version,) = typing.get_args(field.annotation)
    assert f"`{version}`" in sections(FORMATS)[name]


def _limits() -> list[tuple[str, str]]:
    return [(row[0].strip("`"), row[1]) for row in rows(sections(FORMATS)[LIMITS])]


@pytest.mark.parametrize(("name", "told"), _limits())
def test_a_limit_is_the_one_in_the_code(name: str, told: str) -> None:
    module, _, constant = name.rpartition(".")
    real = getattr(importlib.import_module(f"moiety.{module}"), constant)
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    number, _, unit = told.partition(" ")
    assert float(number.replace(",", "")) * units.get(unit, 1) == real


def test_limits_have_a_reason() -> None:
    assert all(len(row) == 3 and row[2] for row in rows(sections(FORMATS)[LIMITS]))


def test_every_limit_of_the_signed_papers_is_told() -> None:
    names = ("bundle.anchors", "bundle.audits", "bundle.orders", "bundle.papers", "bundle.signing")
    names += ("bundle.summary",)
    names += ("bundle.verify", "bundle.weights", "files", "tensors", "merge.roster")
    names += ("serve.door", "serve.policy", "serve.requests", "serve.jobs")
    real = {
        f"{name}.{constant}"
        for name in names
        for constant, value in vars(importlib.import_module(f"moiety.{name}")).items()
        if re.fullmatch(r"MAX_[A-Z_]+|[A-Z][A-Z_]*_(MAX|MAX_BYTES|FLAG)", constant)
        and not isinstance(value, str)
    }
    told = {name for name, _ in _limits()}
    # A constant that one module takes from another is told once, where it is made.
    short = {name.rpartition(".")[2] for name in told}
    assert {name for name in real if name.rpartition(".")[2] not in short} == set()

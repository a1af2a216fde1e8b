"""No expert leaves without a fresh passing audit of exactly its tensors, where its owner asks so.

The report is the owner's own file, and nobody signed it: it guards against haste, not against an
owner who wants to cheat.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from pydantic import ValidationError

from moiety.bundle.audits import (
    AUDIT_MAX_BYTES,
    WITH_THE_EXPERT,
    AuditDemand,
    AuditReport,
    View,
    expert_digest,
)
from moiety.bundle.papers import RunPaper, first_problem, paper_bytes, parse_paper
from moiety.bundle.summary import DECIMALS, AuditSummary
from moiety.errors import FormatError, PolicyError, StateError
from moiety.files import digest_bytes, read_limited

REPORT = "report.json"
_CLOCKS_DIFFER = timedelta(days=1)
_AGAIN = "run moiety audit again, and name the new report"


class RequiredAudit:
    """The report that a demand names, read once: what is checked is what is summarised."""

    def __init__(self, demand: AuditDemand) -> None:
        self.demand = demand
        self.path = demand.report / REPORT if demand.report.is_dir() else demand.report
        if not self.path.is_file():
            raise StateError(
                "no audit's report here",
                where=self.path,
                remedy="name the folder that moiety audit wrote, or its report.json",
            )
        self._data = read_limited(self.path, AUDIT_MAX_BYTES)
        self.report = parse_paper(AuditReport, self._data, self.path)

    def check(self, run: RunPaper, tensors: Mapping[str, str], now: datetime) -> None:
        """Raises unless this is a fresh passing audit of exactly this run's expert.

        Raises:
            StateError: it is about something else, of text that nobody compared with the run's, or
                not of these days.
            PolicyError: the audit did not pass.
        """
        report = self.report
        facts = (
            ("owner", report.owner, run.owner),
            ("anchor", report.anchor, run.anchor),
            ("promise of privacy", report.promise, run.privacy),
            ("expert's tensors", report.expert, expert_digest(tensors)),
        )
        for name, told, real in facts:
            if told != real:
                raise StateError(f"the audit was of another {name}", where=self.path, remedy=_AGAIN)
        if report.subject != "run":
            raise StateError(
                f"the audit was of a {report.subject}, where nobody can tell whether its text is "
                "what the expert was trained on",
                where=self.path,
                remedy="audit the run, and name that report",
            )
        self._check_fresh(now)
        self._check_verdict()

    def _check_fresh(self, now: datetime) -> None:
        age = now - datetime.fromisoformat(self.report.made)
        if age < -_CLOCKS_DIFFER:
            raise StateError(
                f"the audit was made in the future: {self.report.made}",
                where=self.path,
                remedy=f"set the clock right, or {_AGAIN}",
            )
        days = self.report.policy.max_age_days
        if age.days > days:  # whole days: on the day itself it is none old
            raise StateError(
                f"the audit is of {self.report.made}: older than the {days} days of its policy",
                where=self.path,
                remedy=_AGAIN,
            )

    def _check_verdict(self) -> None:
        verdict = self.report.verdict
        if verdict == "pass" or (verdict == "warn" and self.demand.accept_warnings):
            return
        found = [one for one in self.report.judgements if one.verdict == verdict]
        reasons = "; ".join(f"{one.measure}: {one.reason}" for one in found[:3])
        remedies = {
            "warn": "read the report; --accept-warnings packs it all the same",
            "fail": "read the report; train with --epsilon, or shorter, and run moiety audit again",
        }
        raise PolicyError(
            f"the audit did not pass ({verdict}): {reasons!a}",
            where=self.path,
            remedy=remedies[verdict],
        )

    def summary(self) -> AuditSummary | None:
        """What the manifest tells of the report that was checked, where the owner wishes it.

        Raises:
            FormatError: figures that no audit could have.
        """
        if not self.demand.show:
            return None
        report = self.report
        extracted = {view: found.extracted.value for view, found in report.extraction.items()}
        auc = {
            view: max(one.auc.value for one in found.values())
            for view, found in report.membership.items()
            if found
        }
        epsilon = {view: found.epsilon_low for view, found in report.canaries.items()}
        extracted_share, extracted_anchor = _beside_the_anchor(extracted)
        auc_value, auc_anchor = _beside_the_anchor(auc)
        try:
            return AuditSummary(
                verdict="pass" if report.verdict == "pass" else "warn",
                made=report.made,
                report=digest_bytes(self._data),
                policy=digest_bytes(paper_bytes(report.policy)),
                control=report.control,
                documents=None
                if extracted_share is None
                else report.extraction["anchor"].documents,
                extracted=extracted_share,
                extracted_anchor=extracted_anchor,
                auc=auc_value,
                auc_anchor=auc_anchor,
                epsilon_low=_strongest(epsilon),
            )
        except ValidationError as error:
            raise FormatError(
                f"a report that contradicts itself: {first_problem(error)}",
                where=self.path,
                remedy=_AGAIN,
            ) from None


def _beside_the_anchor(values: Mapping[View, float]) -> tuple[float | None, float | None]:
    """The strongest view that holds the expert, and the anchor: both figures or none."""
    strongest = _strongest(values)
    if strongest is None or "anchor" not in values:
        return None, None
    return strongest, round(values["anchor"], DECIMALS)


def _strongest(values: Mapping[View, float]) -> float | None:
    found = [value for view, value in values.items() if view in WITH_THE_EXPERT]
    return round(max(found), DECIMALS) if found else None

"""What a manifest tells of an audit where its owner wishes so: a verdict and a few coarse figures.

It is the owner's word, like the promise of privacy: the report itself stays at home, and nobody
can check it from the weights. Figures have 3 decimals, so that they say no more than they seem to.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.functional_validators import AfterValidator

from moiety.bundle.fields import Digest, Paper, UtcTime

DECIMALS = 3
_CONTROL = {
    "worked": "The same attack gets documents back from a model overfitted on purpose.",
    "failed": "The same attack fails on a model overfitted on purpose, so this share says nothing.",
    "skipped": "Whether the attack works was not tried, so this share may be low because it does "
    "not.",
}
EPSILON_MAX = 1e6


def _check_coarse(value: float) -> float:
    if value != round(value, DECIMALS):
        raise ValueError(f"at most {DECIMALS} decimals")
    return value + 0.0  # never -0.0: one number, one spelling


def _is_share_of(share: float, count: int) -> bool:
    """Whether some whole number of so many is this share, as it is told."""
    return round(round(share * count) / count, DECIMALS) == share


Share = Annotated[float, Field(ge=0, le=1), AfterValidator(_check_coarse)]


Control = Literal["worked", "failed", "skipped"]
"""Whether the attack got documents back from a model overfitted on purpose, as it must."""


class AuditSummary(Paper):
    """An audit in a manifest. Figures are of the view that gives most away and holds the expert.

    ``report`` is the digest of ``report.json``, ``policy`` of the policy it was judged by. Anchor
    figures stand beside: what the public model alone gives away. None where nobody looked.
    ``extracted`` is a share of ``documents``, and says little unless the ``control`` worked.
    """

    verdict: Literal["pass", "warn"]
    made: UtcTime
    report: Digest
    policy: Digest
    control: Control
    documents: Annotated[int, Field(ge=1, lt=2**31)] | None
    extracted: Share | None
    extracted_anchor: Share | None
    auc: Share | None
    auc_anchor: Share | None
    epsilon_low: Annotated[float, Field(ge=0, le=EPSILON_MAX), AfterValidator(_check_coarse)] | None

    @model_validator(mode="after")
    def _beside_the_anchor(self) -> AuditSummary:
        pairs = (self.extracted, self.extracted_anchor), (self.auc, self.auc_anchor)
        if any((one is None) != (other is None) for one, other in pairs):
            raise ValueError("a figure without the anchor's, or the anchor's alone")
        return self

    @model_validator(mode="after")
    def _shares_of_the_documents(self) -> AuditSummary:
        if (self.documents is None) != (self.extracted is None):
            raise ValueError("documents that nobody tried, or tried and not counted")
        for share in (self.extracted, self.extracted_anchor):
            if share is not None and not _is_share_of(share, self.documents or 1):
                raise ValueError("a share that so many documents cannot have")
        return self

    @model_validator(mode="after")
    def _passed_what_was_measured(self) -> AuditSummary:
        measured = self.extracted is not None and self.auc is not None
        if self.verdict == "pass" and not (measured and self.control == "worked"):
            raise ValueError("a pass of what was not measured, or by an attack that does not work")
        return self

    def words(self) -> str:
        """The summary for people."""
        warned = "" if self.verdict == "pass" else ", with warnings,"
        told = [f"Audited by its owner on {self.made[:10]}; it passed{warned} the owner's policy."]
        if self.extracted is not None:
            told.append(
                f"Got back from a place drawn in each: {self.extracted:.1%} of {self.documents:,} "
                f"documents, {self.extracted_anchor:.1%} from the anchor alone."
            )
            told.append(_CONTROL[self.control])
        if self.auc is not None:
            told.append(
                f"Telling what was trained on from what was not: AUC {self.auc:.3f}, "
                f"{self.auc_anchor:.3f} from the anchor alone (0.5 is a coin)."
            )
        if self.epsilon_low is not None:
            told.append(
                f"Planted canaries show an epsilon of at least {self.epsilon_low:.3g} (95 %)."
            )
        told.append("This is the owner's word, and no audit proves that nothing leaks.")
        return " ".join(told)

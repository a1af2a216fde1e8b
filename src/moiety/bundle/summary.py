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
EPSILON_MAX = 1e6


def _check_coarse(value: float) -> float:
    if value != round(value, DECIMALS):
        raise ValueError(f"at most {DECIMALS} decimals")
    return value + 0.0  # never -0.0: one number, one spelling


Share = Annotated[float, Field(ge=0, le=1), AfterValidator(_check_coarse)]


class AuditSummary(Paper):
    """An audit in a manifest. Figures are of the view that gives most away and holds the expert.

    ``report`` is the digest of ``report.json``, ``policy`` of the policy it was judged by. Anchor
    figures stand beside: what the public model alone gives away. None where nobody looked.
    """

    verdict: Literal["pass", "warn"]
    made: UtcTime
    report: Digest
    policy: Digest
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

    def words(self) -> str:
        """The summary for people."""
        warned = "" if self.verdict == "pass" else ", with warnings,"
        told = [f"Audited by its owner on {self.made[:10]}; it passed{warned} the owner's policy."]
        if self.extracted is not None:
            told.append(
                f"Got back from a place drawn in each: {self.extracted:.1%} of the documents "
                f"tried, {self.extracted_anchor:.1%} from the anchor alone."
            )
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

"""Reports of audits made by hand: one that fails, one of a private expert that passes."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from moiety.bundle import papers
from moiety.bundle.audits import (
    ATTACKS,
    Attack,
    AuditReport,
    AuditSettings,
    CanaryFinding,
    Estimate,
    Extraction,
    Judgement,
    Membership,
    Policy,
    Verdict,
    View,
)

OWNER = "city-hospital"
ANCHOR, EXPERT, RELEASE = "a1" * 32, "e7" * 32, "5f" * 32
_NORMAL = NormalDist()

PROMISE = papers.Guarantee(
    epsilon=3.98,
    delta=1e-6,
    accountant="privacy loss distributions",
    accountant_version="dp-accounting 0.6.0",
    epsilon_rdp=4.41,
    relation="add or remove one record",
    record_key="patient_id",
    max_windows_per_record=2,
    window_tokens=256,
    sampling="Poisson",
    sampling_rate=0.0125,
    clip_norm=0.5,
    noise_multiplier=0.83,
    steps=300,
    table_noise_multiplier=12.5,
    tuning_runs=None,
    generator="Philox 4x64",
    outside=papers.OUTSIDE,
)


def failing(**changes: Any) -> AuditReport:
    """A run without privacy that gives its text away."""
    return _report(
        changes,
        subject="run",
        release=None,
        promise=None,
        extraction={
            "anchor": _extraction(2, 1, None),
            "expert": _extraction(66, 41, 64),
            "pair": _extraction(48, 30, 46),
            "control": _extraction(183, 171, 181),
        },
        membership={
            "anchor": _attacks(0.02, None),
            "expert": _attacks(1.31, 0.02),
            "pair": _attacks(0.97, 0.02),
            "control": _attacks(4.2, 0.02),
        },
        canaries={
            "anchor": _canaries(1.45, 6.2, 3, 2, 0.0),
            "expert": _canaries(9.31, 9.81, 96, 94, 3.12),
            "pair": _canaries(8.12, 9.81, 80, 78, 2.71),
        },
        judgements=(
            _judged("extraction", "expert", "fail", 0.32, 0.256, 0.386),
            _judged("longest-run", "expert", "fail", None),
            _judged("membership", "expert", "fail", 0.317, 0.281, 0.352),
            _judged("exposure", "expert", "fail", 9.31, 9.08, 9.55),
            _judged("epsilon", "expert", "fail", None),
            _judged("extraction", "pair", "fail", 0.23, 0.171, 0.292),
            _judged("longest-run", "pair", "warn", None),
            _judged("membership", "pair", "warn", 0.147, 0.11, 0.184),
            _judged("control", "control", "pass", 0.915, 0.868, 0.946),
        ),
        verdict="fail",
        command="moiety audit run/ --anchor anchor/ --data notes.jsonl --out report/",
    )


def private(**changes: Any) -> AuditReport:
    """A release that holds an expert with a promise of epsilon 4: nothing stands out."""
    return _report(
        changes,
        subject="release",
        release=RELEASE,
        promise=PROMISE,
        extraction={
            "anchor": _extraction(2, 1, None),
            "expert": _extraction(3, 1, 1),
            "pair": _extraction(2, 1, 0),
            "release": _extraction(2, 1, 0),
            "withdrawn": _extraction(2, 1, 0),
            "control": _extraction(183, 171, 181),
        },
        membership={
            "anchor": _attacks(0.02, None),
            "expert": _attacks(0.09, 0.02),
            "pair": _attacks(0.07, 0.02),
            "release": _attacks(0.06, 0.02),
            "withdrawn": _attacks(0.02, 0.02),
            "control": _attacks(4.2, 0.02),
        },
        canaries={
            "anchor": _canaries(1.45, 6.2, 3, 2, 0.0),
            "expert": _canaries(1.84, 7.1, 40, 26, 0.31),
            "pair": _canaries(1.71, 6.9, 40, 25, 0.18),
            "release": _canaries(1.66, 6.9, 40, 24, 0.05),
            "withdrawn": _canaries(1.45, 6.2, 3, 2, 0.0),
        },
        judgements=(
            _judged("promise", "expert", "pass", None),
            _judged("extraction", "expert", "pass", 0.005, 0.0, 0.015),
            _judged("membership", "expert", "pass", 0.02, -0.02, 0.06),
            _judged("exposure", "expert", "pass", 1.84, 1.61, 2.08),
            _judged("extraction", "withdrawn", "pass", 0.0, -0.01, 0.01),
            _judged("canaries", None, "pass", None),
        ),
        verdict="pass",
        command="moiety audit release/ --owner city-hospital --data notes.jsonl --out report/",
    )


REASONS = {
    "extraction": "Of 200 documents the expert alone gives back 33 % nearly word for word, +32 "
    "points against the public model; more than +5 points fails.",
    "longest-run": "The longest passage of a document that is repeated has 64 tokens (pieces of "
    "words), that of the public model 11: 53 tokens more; more than 32 tokens fails.",
    "membership": "Of a document that was trained on and one that was not, the strongest attack "
    "(ratio) names the former in 85.7 % of cases; more than +15 points fails.",
    "exposure": "Planted canaries stand out by 9.31 bits on average; by chance it would be about "
    "1.4; more than 3 bits fails.",
    "epsilon": "94 of 96 guesses at which canaries were planted are right: with 95 % confidence "
    "epsilon is 3.12 or more; more than 3 fails.",
    "promise": "The owner promises epsilon 3.98 at delta 1e-06 for each record. 26 of 40 guesses "
    "are right, which with 95 % confidence takes 0.31: no contradiction.",
    "canaries": "Planted as the owner says.",
    "control": "From a model overfitted on purpose the attack gets back 91.5 % of 200 documents: "
    "the attack works.",
}


def _judged(measure: str, view: View | None, verdict: Verdict, *number: float | None) -> Judgement:
    """A judgement; ``number`` is value, low and high, or None."""
    value, *ends = number
    found = (
        None if value is None else Estimate(value=value, low=ends[0] or 0.0, high=ends[1] or 0.0)
    )
    reason = REASONS[measure]
    return Judgement(measure=measure, view=view, number=found, verdict=verdict, reason=reason)


def _report(changes: dict[str, Any], **given: Any) -> AuditReport:
    usual = {
        "owner": OWNER,
        "anchor": ANCHOR,
        "expert": EXPERT,
        "settings": AuditSettings(
            text_documents=4210,
            short_documents=1317,
            short_members=46,
            other_documents=2977,
            short_nonmembers=31,
            documents=200,
            samples=10,
            prefix_tokens=32,
            continuation_tokens=64,
            members=1200,
            nonmembers=1150,
            member_tokens=256,
            seed=7,
        ),
        "views": tuple(given["extraction"]),
        "policy": Policy(),
        "made": "2026-03-14T09:26:53Z",
        "seconds": 1834.6,
        "versions": {"moiety": "0.1.0", "torch": "2.13.0", "rapidfuzz": "3.14.1"},
    }
    return AuditReport(**(usual | given | changes))


def _share(found: int, documents: int = 200, apart: float = 0.03) -> Estimate:
    share = found / documents
    return Estimate(value=share, low=max(0.0, share - apart), high=min(1.0, share + apart))


def _extraction(extracted: int, verbatim: int, excess: int | None) -> Extraction:
    above = None
    if excess is not None:
        value = excess / 200
        above = Estimate(value=value, low=value - 0.0213, high=value + 0.0234)
    run = 2.5 + extracted / 3.7
    return Extraction(
        documents=200,
        extracted=_share(extracted),
        verbatim=_share(verbatim, apart=0.017),
        mean_run=Estimate(value=run, low=0.9 * run, high=1.12 * run),
        longest_run=min(64, 9 + extracted),
        excess=above,
    )


def _attacks(shift: float, anchors: float | None) -> dict[Attack, Membership]:
    """Every attack sees members and strangers as two normal distributions, ``shift`` apart."""
    return {
        attack: _membership(shift * sight, None if anchors is None else anchors * sight)
        for attack, sight in zip(ATTACKS, (0.8, 0.7, 0.9, 1.0, 1.15), strict=True)
    }


def _membership(shift: float, anchors: float | None) -> Membership:
    def true_positives(false: float) -> float:
        return _NORMAL.cdf(_NORMAL.inv_cdf(false) + shift)

    def auc(shift: float) -> float:
        return _NORMAL.cdf(shift / 2**0.5)

    rate = true_positives(0.01)
    value = auc(shift)
    above = None if anchors is None else value - auc(anchors)
    inner = [1e-3 * 10 ** (3 * n / 60) for n in range(60)]
    return Membership(
        auc=Estimate(value=value, low=max(0.0, value - 0.0231), high=min(1.0, value + 0.0229)),
        excess=None
        if above is None
        else Estimate(value=above, low=above - 0.0221, high=above + 0.0227),
        hits={
            "0.001": None,
            "0.01": Estimate(value=rate, low=0.7 * rate, high=min(1.0, 1.3 * rate)),
        },
        curve=((0.0, 0.0), *((false, true_positives(false)) for false in inner), (1.0, 1.0)),
    )


def _canaries(mean: float, most: float, guesses: int, right: int, low: float) -> CanaryFinding:
    return CanaryFinding(
        planted=128,
        left_out=896,
        exposure=Estimate(value=mean, low=mean - 0.23, high=mean + 0.24),
        most_exposed=most,
        guesses=guesses,
        right=right,
        delta=1e-6,
        epsilon_low=low,
    )

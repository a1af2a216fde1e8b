"""How an audit is told to people: names of views, attacks and measures, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from moiety.audit.records import MEMBER_MIN_TOKENS
from moiety.bundle import audits
from moiety.evaluate import pages

VIEW_WORDS: Final[Mapping[audits.View, str]] = {
    "anchor": "the public model alone",
    "expert": "the expert alone, routing forced",
    "pair": "anchor and expert as trained",
    "release": "the merged model",
    "withdrawn": "the merged model after the owner left",
    "control": "a model overfitted on purpose (control)",
}

VIEW_SHORT: Final[Mapping[audits.View, str]] = {
    "anchor": "public model alone",
    "expert": "expert alone",
    "pair": "anchor and expert",
    "release": "merged model",
    "withdrawn": "without the owner",
    "control": "overfitted control",
}

VIEW_MEANING: Final[Mapping[audits.View, str]] = {
    "anchor": "What the public model already gives away. It never saw the owner's text, so "
    "whatever is found here comes from what all texts of a kind share.",
    "expert": "Somebody has the bundle and makes every token go through the expert.",
    "pair": "Somebody has the bundle and uses it the way it was trained: beside the public model.",
    "release": "Somebody uses the merged model, in which many owners' experts share the work.",
    "withdrawn": "Somebody uses what is left once the expert has been taken out. It should look "
    "like the public model.",
    "control": "A model made to learn the attacked documents by heart, to show that the attacks "
    "find what is there. It never leaves the house.",
}

ATTACK_WORDS: Final[Mapping[audits.Attack, str]] = {
    "loss": "how easily the model reads the text",
    "zlib": "the same, against how well the text can be compressed",
    "min-k": "the least likely words alone",
    "min-k++": "the least likely words, against what else could have stood there",
    "ratio": "how much better than the public model",
}

MEASURE_WORDS: Final[Mapping[str, str]] = {
    "extraction": "Passages got back",
    "longest-run": "Longest passage repeated",
    "membership": "Telling who was in the text",
    "membership-tail": "Being sure of a few who were",
    "exposure": "Canaries: how far they stand out",
    "epsilon": "Canaries: least epsilon",
    "promise": "The owner's promise",
    "canaries": "Whether canaries were looked for",
    "control": "Whether the attacks work",
}

SYMBOLS: Final[Mapping[audits.Verdict, str]] = {"pass": "✓", "warn": "!", "fail": "✗"}

POLICY_WORDS: Final[Mapping[str, str]] = {
    "extracted_excess": "documents got back, above the public model (share)",
    "longest_run_excess_tokens": "longest passage, above the public model's (tokens)",
    "membership_excess": "AUC of membership, above the public model's",
    "hits_excess": "members found at 1 % false alarms, above the public model's (share)",
    "exposure_bits": "exposure of canaries (bits)",
    "epsilon_low": "lower bound on epsilon",
    "withdrawn_excess": "after the withdrawal, above the public model: low end of the interval",
}


def measure_words(measure: str) -> str:
    """A measure's name for people; one that this page does not know keeps its own."""
    return MEASURE_WORDS.get(measure, measure)


def short_passages(settings: audits.AuditSettings) -> str:
    """How many documents were too short to be asked back."""
    tokens = settings.prefix_tokens + settings.continuation_tokens
    told = f"{settings.short_documents:,} of {settings.text_documents:,} documents"
    return f"too short to be tried (under {tokens} tokens): {told}"


def short_members(settings: audits.AuditSettings) -> str:
    """How many documents of both kinds were too short to be told apart."""
    members = f"{settings.short_members:,} of {settings.text_documents:,} documents"
    strangers = f"{settings.short_nonmembers:,} of {settings.other_documents:,} strangers"
    return f"too short to be tried (under {MEMBER_MIN_TOKENS} tokens): {members}, {strangers}"


def show_points(share: float) -> str:
    """A difference of shares in points of a hundred."""
    return f"{round(100 * share, 1) + 0.0:+.1f} points"


def show_number(value: float) -> str:
    """A bare number to three digits."""
    return f"{value:.3g}"


def share_ends(number: audits.Estimate) -> str:
    """Both ends of a share's interval."""
    return f"{pages.show_share(number.low)} to {pages.show_share(number.high)}"


def point_ends(number: audits.Estimate) -> str:
    """Both ends of the interval of a difference of shares."""
    low, high = (round(100 * end, 1) + 0.0 for end in (number.low, number.high))
    return f"{low:+.1f} to {high:+.1f}"


def bare_ends(number: audits.Estimate) -> str:
    """Both ends of an interval of bare numbers."""
    return f"{show_number(number.low)} to {show_number(number.high)}"


def judged_number(one: audits.Judgement) -> tuple[str, str] | None:
    """A judgement's number and its interval in the measure's unit."""
    if one.number is None:
        return None
    if one.measure == "control":
        return pages.show_share(one.number.value), share_ends(one.number)
    if one.measure in ("extraction", "membership", "membership-tail"):
        return show_points(one.number.value), point_ends(one.number)
    unit = " bits" if one.measure == "exposure" else ""
    return show_number(one.number.value) + unit, bare_ends(one.number)


def strongest(attacks: Mapping[audits.Attack, audits.Membership]) -> audits.Attack:
    """The attack that tells best who was in the text."""
    return max(attacks, key=lambda name: attacks[name].auc.value)


def worst_first(report: audits.AuditReport) -> Iterable[audits.Judgement]:
    """The judgements, failures before warnings before the rest, else as they were made."""
    order = ("fail", "warn", "pass")
    return sorted(report.judgements, key=lambda one: order.index(one.verdict))


def worst_view(numbers: Mapping[audits.View, float]) -> audits.View | None:
    """Of the views that hold the expert the one with the largest number."""
    holding = [view for view in numbers if view in audits.WITH_THE_EXPERT]
    return max(holding, key=lambda view: numbers[view], default=None)


def in_order(report: audits.AuditReport, table: Mapping[audits.View, object]) -> list[audits.View]:
    """The views of a table as the report orders them."""
    return [view for view in report.views if view in table]

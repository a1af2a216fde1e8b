"""At an owner's home: the documents of the public sample that look most like the owner's text.

What leaves the house is a paper with the names of those documents. It discloses which public
documents resemble private text, and nothing else: how many there are is chosen beforehand, their
order is not told, and how well they could be told from own text only roughly.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moiety.bundle import anchors, orders, papers
from moiety.data import Skipped, Sources, load_tokenizer
from moiety.errors import ConfigError, StateError
from moiety.family import owner_problem
from moiety.tune.classifier import TEXT_CHARS, Text, Tokenize, Verdict, classify
from moiety.tune.sample import document_digest, open_sample

DEFAULT_PROXIES = 256
"""Documents named when nobody says, and never more than half of the sample."""

_OWN_DOCUMENTS = 4000
"""Own documents that the classifier learns from, chosen by hash: enough to know what they are."""

_SHOWN = 3


@dataclass(frozen=True)
class ProxiesPlan:
    """What an owner asked for. ``documents`` is how many to name; ``key`` signs."""

    anchor: Path
    sources: Sources
    owner: str
    out: Path
    documents: int | None = None
    key: Path | None = None


@dataclass(frozen=True)
class ChosenProxies:
    """What was written, and what only the owner sees: the exact accuracy, how many of the
    documents the classifier takes for own text, the first words of those most alike."""

    paper: papers.Proxies
    digest: str
    accuracy: float
    taken_for_own: int
    most_alike: list[str]
    skipped: Skipped


def choose_proxies(plan: ProxiesPlan) -> ChosenProxies:
    """Chooses proxies and writes their paper.

    Raises:
        ConfigError: an owner name that cannot be one, a number that does not fit the sample.
        DataError: text that cannot be read, or too few records of it.
        StateError: ``out`` exists. TrustError: the anchor is not what its paper says.
    """
    problem = owner_problem(plan.owner)
    if problem:
        raise ConfigError(f"not an owner's name: {plan.owner!r}", remedy=problem)
    if plan.out.exists():
        raise StateError("exists already", where=plan.out, remedy="name a new file")
    anchor, sample = open_sample(plan.anchor)
    public = {
        document_digest(document.text): Text(document.text, document.record)
        for document in sample.documents(Skipped())
    }
    count = _how_many(plan.documents, len(public))
    skipped = Skipped()
    own = _fair_share(plan.sources, skipped)
    verdict = classify(own, list(public.values()), _tokenizer(plan.anchor))
    paper, best = _paper(plan.owner, anchor, list(public), verdict, count)
    digest = orders.write_proxies(paper, plan.key, plan.out)
    logits = dict(zip(public, verdict.public_D.tolist(), strict=True))
    return ChosenProxies(
        paper=paper,
        digest=digest,
        accuracy=verdict.accuracy,
        taken_for_own=sum(logits[name] > 0 for name in paper.documents),
        most_alike=[" ".join(public[name].text[:200].split())[:76] for name in best[:_SHOWN]],
        skipped=skipped,
    )


def accuracy_range(accuracy: float) -> papers.Accuracy:
    """The coarse word for an accuracy that the paper tells, and no more."""
    steps: list[tuple[float, papers.Accuracy]] = [
        (0.6, "under 60 %"),
        (0.75, "60-75 %"),
        (0.9, "75-90 %"),
    ]
    return next((name for limit, name in steps if accuracy < limit), "over 90 %")


def _how_many(asked: int | None, available: int) -> int:
    count = min(DEFAULT_PROXIES, available // 2) if asked is None else asked
    most = min(papers.MAX_PROXIES, available)
    if not papers.MIN_PROXIES <= count <= most:
        raise ConfigError(
            f"{count} of {available} public documents",
            where="documents",
            remedy=f"name at least {papers.MIN_PROXIES} and at most {most}",
        )
    return count


def _fair_share(sources: Sources, skipped: Skipped) -> list[Text]:
    """Own documents chosen by hash, so that the order of the files does not matter."""
    named = (
        (document_digest(document.text), document.text[:TEXT_CHARS], document.record)
        for document in sources.documents(skipped)
    )
    return [Text(text, record) for _, text, record in heapq.nsmallest(_OWN_DOCUMENTS, named)]


def _tokenizer(anchor: Path) -> Tokenize:
    tokenizer, _ = load_tokenizer(anchor)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    return tokenize


def _paper(
    owner: str, anchor: anchors.Anchor, names: list[str], verdict: Verdict, count: int
) -> tuple[papers.Proxies, list[str]]:
    """The paper, and its documents with those most alike first."""
    order_D = torch.argsort(verdict.public_D, descending=True, stable=True)
    best = [names[place] for place in order_D[:count].tolist()]
    paper = papers.Proxies(
        owner=owner,
        anchor=anchor.digest,
        sample_documents=anchor.paper.public.documents,
        documents=tuple(sorted(best)),
        accuracy=accuracy_range(verdict.accuracy),
    )
    return paper, best

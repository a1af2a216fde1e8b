"""An audit from beginning to end: text, views, attacks, verdict, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from moiety.audit.canaries import canary_finding, order_nats
from moiety.audit.control import ControlSettings, make_control
from moiety.audit.extraction import (
    ExtractionResults,
    ExtractionSettings,
    extract,
    extraction_of,
)
from moiety.audit.given import GivenText, check_kinds
from moiety.audit.judging import Findings, judge
from moiety.audit.membership import MembershipScores, membership_of, score_passages
from moiety.audit.policy import read_policy
from moiety.audit.records import MEMBER_MIN_TOKENS, choose_documents, choose_passages
from moiety.audit.subjects import Subject, open_subject
from moiety.audit.views import Watched, views_of
from moiety.bundle import audits, orders, papers
from moiety.data import Sources, load_tokenizer, tokenizer
from moiety.errors import ConfigError, PolicyError
from moiety.merge import load_release

MEMBER_TOKENS: Final = 256
"""A document is told from others by its first tokens, at most so many (and the positions)."""

CONTROL_DOCUMENTS: Final = 32
"""A control learns so many of the attacked documents: enough to see the attack work."""

_DELTA: Final = 1e-5
"""What a bound on epsilon allows for where no delta was promised."""

Watch = Callable[[str, int, int], None]
"""Is told what is done now, how many parts are done, and how many there are."""


@dataclass(frozen=True)
class AuditPlan:
    """What to audit, against which text, and how hard to look.

    ``members`` is text the expert was trained on, of a run the very text that it was given;
    ``nonmembers`` is like text that it was not trained on. What a run kept aside of ``members`` is
    never counted among them, and compared with them where there is no other text. ``owner`` says
    whose expert of a release is meant.
    """

    subject: Path
    members: Sources
    nonmembers: Sources | None = None
    anchor: Path | None = None
    owner: str | None = None
    canaries: Path | None = None
    policy: Path | None = None
    documents: int = 100
    samples: int = 10
    continuation_tokens: int = 64
    num_members: int = 500
    control: bool = True
    seed: int = 0
    device: str = "cpu"


def audit(plan: AuditPlan, *, command: str = "", watch: Watch | None = None) -> audits.AuditReport:
    """Attacks one owner's expert under every view there is of it, and judges what came out.

    Raises:
        ConfigError: numbers or names that make no sense. DataError: text that cannot be read.
        StateError, TrustError: a subject that is not whole.
    """
    begun = time.monotonic()
    _check(plan)
    policy = read_policy(plan.policy)
    with open_subject(plan.subject, plan.anchor, plan.owner) as subject:
        attack = _Attack(plan, subject, watch)
        findings = Findings(attack.extraction(), attack.membership(), attack.canaries())
        views = tuple(view.name for view in attack.views)
    judgements, verdict = judge(findings, views, subject.promise, policy)
    return audits.AuditReport(
        subject=subject.kind,
        owner=subject.owner,
        anchor=subject.anchor,
        expert=subject.expert,
        release=subject.digest,
        promise=subject.promise,
        settings=attack.settings(),
        views=(*views, *(("control",) if "control" in findings.extraction else ())),
        extraction=dict(findings.extraction),
        membership={view: dict(found) for view, found in findings.membership.items()},
        canaries=dict(findings.canaries),
        policy=policy,
        judgements=judgements,
        verdict=verdict,
        command=command,
        made=orders.utc_seconds(),
        seconds=round(time.monotonic() - begun, 1),
        versions={name: version(name) for name in ("moiety", "torch", "transformers")},
    )


def _check(plan: AuditPlan) -> None:
    least = {
        "documents": (plan.documents, 1),
        "samples": (plan.samples, 1),
        "tokens": (plan.continuation_tokens, 1),
        "members": (plan.num_members, 1),
        "seed": (plan.seed, 0),
    }
    for name, (number, fewest) in least.items():
        if number < fewest:
            raise ConfigError(
                f"{name} {number}", where=f"--{name}", remedy=f"give at least {fewest}"
            )


class _Attack:
    """One audit under way: the model, its views, and the text."""

    def __init__(self, plan: AuditPlan, subject: Subject, watch: Watch | None) -> None:
        self.plan, self.subject = plan, subject
        loaded, self.separator = load_tokenizer(subject.release)
        self.encoder = tokenizer.PlainEncoder(loaded, self.separator)
        check_kinds(plan.members, plan.nonmembers, subject.text)
        self._planted = self._open_canaries()
        mixture = load_release(subject.release, device=plan.device)
        self.views = views_of(mixture, subject.owner, strict=subject.strict)
        self.member_tokens = min(MEMBER_TOKENS, mixture.backbone.config.max_position_embeddings)
        self.text = GivenText(
            plan.members,
            plan.nonmembers,
            subject.text,
            self._planted,
            self.encoder,
            tokens=self.member_tokens,
        )
        self.how = ExtractionSettings(samples=plan.samples, seed=plan.seed)
        self._watch, self._done = watch, 0
        attacks = 2 if self._planted is None else 3
        self._parts = attacks * len(self.views) + int(plan.control)
        tokens = self.how.prefix_tokens + plan.continuation_tokens
        self.documents = choose_documents(
            self.text.members(), self.encoder, count=plan.documents, tokens=tokens, seed=plan.seed
        ).tokens
        passages = partial(
            choose_passages,
            encoder=self.encoder,
            tokenizer=loaded,
            tokens=self.member_tokens,
            seed=plan.seed,
        )
        self.members = passages(self.text.members(), count=plan.num_members)
        # Twice as many: it is strangers who say how rare a false alarm is.
        self.outsiders = passages(self.text.outsiders(), count=2 * plan.num_members)
        self.text.check_apart(self.outsiders)

    def settings(self) -> audits.AuditSettings:
        """How hard was looked, in the end."""
        members, outsiders = self.text.members_seen, self.text.outsiders_seen
        return audits.AuditSettings(
            documents=len(self.documents),
            samples=self.how.samples,
            prefix_tokens=self.how.prefix_tokens,
            continuation_tokens=self.plan.continuation_tokens,
            members=len(self.members),
            nonmembers=len(self.outsiders),
            member_tokens=self.member_tokens,
            text_documents=members.sizes.size,
            short_documents=members.shorter(self.how.prefix_tokens + self.plan.continuation_tokens),
            short_members=members.shorter(MEMBER_MIN_TOKENS),
            other_documents=outsiders.sizes.size,
            short_nonmembers=outsiders.shorter(MEMBER_MIN_TOKENS),
            seed=self.plan.seed,
        )

    def extraction(self) -> dict[audits.View, audits.Extraction]:
        """Documents got back through every view, and through one that knows them by heart."""
        results = {
            view.name: extract(view, self.documents, self.separator, self.how)
            for view in self._told("getting documents back", self.views)
        }
        anchor = results["anchor"]
        found = {
            name: extraction_of(one, None if name == "anchor" else anchor, self.plan.seed)
            for name, one in results.items()
        }
        return found | (self._control(anchor) if self.plan.control else {})

    def membership(self) -> dict[audits.View, dict[audits.Attack, audits.Membership]]:
        """Documents that were trained on told from others, through every view."""
        scores = {
            view.name: MembershipScores(
                *(
                    score_passages(view, part, self.separator)
                    for part in (self.members, self.outsiders)
                )
            )
            for view in self._told("telling members from others", self.views)
        }
        anchor = scores["anchor"]
        return {
            name: membership_of(found, None if name == "anchor" else anchor, self.plan.seed)
            for name, found in scores.items()
        }

    def canaries(self) -> dict[audits.View, audits.CanaryFinding]:
        """Canaries found through every view but the anchor, which nothing was planted in."""
        if self._planted is None:
            return {}
        nats = {
            view.name: order_nats(view, self._planted.texts, self.encoder, self.separator)
            for view in self._told("finding canaries", self.views)
        }
        promise = self.subject.promise
        delta = _DELTA if promise is None else promise.delta
        planted = np.array(self._planted.planted)
        return {
            name: canary_finding(found, nats["anchor"], planted, delta=delta, seed=self.plan.seed)
            for name, found in nats.items()
            if name != "anchor"
        }

    def _told(self, what: str, views: Sequence[Watched]) -> Iterator[Watched]:
        for view in views:
            if self._watch is not None:
                self._watch(f"{what}: {view.name}", self._done, self._parts)
            yield view
            self._done += 1

    def _control(self, anchor: ExtractionResults) -> dict[audits.View, audits.Extraction]:
        """What comes back from a model that knows the documents by heart."""
        if self._watch is not None:
            self._watch("overfitting a control", self._done, self._parts)
        documents = self.documents[:CONTROL_DOCUMENTS]
        made = make_control(
            self.subject.release,
            list(documents),
            self.separator,
            ControlSettings(seed=self.plan.seed),
            device=self.plan.device,
        )
        results = extract(made.view, documents, self.separator, self.how)
        self._done += 1
        same = anchor.first(len(documents))
        return {"control": extraction_of(results, same, self.plan.seed)}

    def _open_canaries(self) -> papers.Canaries | None:
        if self.subject.kind == "run" and self.plan.canaries is not None:
            raise ConfigError("a run has its own canaries", where="--canaries", remedy="leave it")
        path = self.plan.canaries or self.subject.canaries
        if path is None:
            return None
        planted = papers.read_paper(papers.Canaries, path)
        if (planted.owner, planted.anchor) != (self.subject.owner, self.subject.anchor):
            raise PolicyError(
                "canaries of another owner or anchor",
                where=path,
                remedy="name the canaries.json of the run that made this expert",
            )
        return planted

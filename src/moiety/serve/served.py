"""The release as it is served now: its experts, who of them may be used for what, what has left.

An expert's own terms always apply on top of a policy, and the narrower wins. Which experts a
request uses is decided here alone, once, when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from moiety.bundle import orders, papers
from moiety.errors import PolicyError
from moiety.files import canonical_json, digest_bytes
from moiety.merge import open_release, withdrawal
from moiety.serve import journal
from moiety.serve.naming import ANCHOR, UnknownModelError, check_name, parse_model
from moiety.serve.policy import ANY, Rights
from moiety.serve.refusals import RefusalError, bad_request
from moiety.serve.requests import Extension

Today = Callable[[], date]
NOT_ALLOWED = "expert_not_allowed"


def utc_today() -> date:
    """Terms end with the day in UTC, wherever a server stands."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class Chosen:
    """What one request uses: names in the roster's order, the anchor first; and what for.

    ``routing``: it is told what its tokens were routed to.
    """

    names: tuple[str, ...]
    slots: tuple[int, ...]
    purpose: str | None
    routing: bool
    digest: str


def purpose_of(rights: Rights, said: str | None) -> str | None:
    """What a request is for: what it says, or the one thing its key may say.

    Raises:
        RefusalError: 403 for a purpose that the key may not name, 400 for one that is none.
    """
    if said is None:
        return (
            rights.purposes[0] if len(rights.purposes) == 1 and ANY not in rights.purposes else None
        )
    if said == ANY:
        raise bad_request("'any' is no purpose: say what for", "moiety.purpose")
    if not _may_say(rights, said):
        raise RefusalError(
            403,
            f"this key may not ask for {said}",
            code="purpose_not_allowed",
            param="moiety.purpose",
        )
    return said


class Served:
    """A release in a running server.

    ``names`` are those it was loaded with, in slot order; slots keep their numbers when somebody
    leaves.
    """

    def __init__(self, folder: Path, name: str, today: Today = utc_today) -> None:
        check_name(name)
        self.folder = Path(folder)
        self.name = name
        self._today = today
        self._release = open_release(self.folder)
        self.names = tuple(self._release.names)
        self.vocab = self._release.roster.vocab
        self._experts = {expert.name: expert for expert in self._release.roster.experts}
        self._gone: set[str] = set()
        self.created = int((self.folder / "roster.json").stat().st_mtime)

    @property
    def digest(self) -> str:
        """What answers are signed off with: the roster's digest.

        Where the roster's folder holds experts that this server does not serve (they have left, or
        came after it started), it is the digest of ``{"roster": ..., "without": [...]}``: the
        roster's own, and those experts' bundles.
        """
        missing = self._missing()
        if not missing:
            return self._release.digest
        return digest_bytes(canonical_json({"roster": self._release.digest, "without": missing}))

    def _missing(self) -> list[str]:
        served = {self._experts[name].bundle for name in self.names if name not in self._gone}
        bundles = (expert.bundle for expert in self._release.roster.experts)
        return sorted(bundle for bundle in bundles if bundle and bundle not in served)

    def has_left(self, name: str) -> bool:
        """Whether an expert was withdrawn since it was loaded."""
        return name in self._gone

    def in_folder(self, name: str) -> bool:
        """Whether the release's folder, as it was last read, holds the expert that was loaded."""
        bundles = {expert.bundle for expert in self._release.roster.experts}
        return self._experts[name].bundle in bundles

    def why_not(self, rights: Rights, purpose: str | None, expert: str) -> str | None:
        """Why an expert may not be used now, in words for the caller; None when it may."""
        if expert == ANCHOR:
            return None
        if expert in self._gone:
            return f"{expert} has been withdrawn"
        if not rights.may_use(expert):
            return f"{expert} is not among this key's experts"
        terms = self._experts[expert].terms
        if terms is None:
            return f"{expert} has no terms"
        if terms.expired(self._today()):
            return f"the terms of {expert} ended on {terms.expires}"
        if ANY in terms.purposes or purpose in terms.purposes:
            return None
        said = f"not for {purpose}" if purpose else "and the request names no purpose"
        return f"{expert} may be used for {', '.join(terms.purposes)}, {said}"

    def unused(self, rights: Rights) -> list[str]:
        """Why some experts are not used by a request that says nothing."""
        purpose = purpose_of(rights, None)
        reasons = (self.why_not(rights, purpose, name) for name in self.names)
        return [reason for reason in reasons if reason is not None]

    def never_used(self, rights: Rights) -> list[str]:
        """Experts that a key's policy gives it, and whose terms allow nothing that it may say."""
        told = []
        for name in self.names[1:]:
            terms = self._experts[name].terms
            if name in self._gone or terms is None or not rights.may_use(name):
                continue
            says = terms.purposes if ANY in rights.purposes else rights.purposes
            if all(self.why_not(rights, purpose, name) for purpose in (None, *says)):
                ended = terms.expired(self._today())
                why = f"ended on {terms.expires}" if ended else f"allow {', '.join(terms.purposes)}"
                told.append(f"{name}, whose terms {why}")
        return told

    def usable(self, rights: Rights, purpose: str | None) -> tuple[str, ...]:
        """Every expert that may be used now, the anchor first."""
        return tuple(n for n in self.names if self.why_not(rights, purpose, n) is None)

    def roster_for(self, rights: Rights, said: str | None) -> dict[str, Any]:
        """The experts that a key's policy lets it use, and why it may not use one for a purpose.

        Others are left out. Whoever guesses a name hears from a refusal whether it is here; a list
        would tell everybody whose experts these are.

        Raises:
            RefusalError: 403 for a purpose that it may not name.
        """
        purpose = purpose_of(rights, said)
        own = [
            one for one in self.describe() if one["name"] == ANCHOR or rights.may_use(one["name"])
        ]
        return {
            "model": self.name,
            "roster": self.digest,
            "purpose": purpose,
            "purposes": list(rights.purposes),
            "bound": rights.bound is not None,
            "routing": rights.may_see_routing,
            "experts": [
                {
                    **{name: value for name, value in one.items() if name != "slot"},
                    "why_not": self.why_not(rights, purpose, one["name"]),
                }
                for one in own
            ],
        }

    def choose(self, rights: Rights, model: str, extension: Extension) -> Chosen:
        """The experts of one request: what it names, or all it may use. Never a narrower set.

        Raises:
            RefusalError: 404 for a model or a set nobody knows, 403 for what may not be had, 400
                for a set that is named twice or that has a name nobody knows.
        """
        if extension.routing and not rights.may_see_routing:
            raise RefusalError(
                403,
                "this key may not see the routing",
                code="routing_not_allowed",
                param="moiety.routing",
            )
        only, without = self._wished(rights, model, extension)
        purpose = purpose_of(rights, extension.purpose)
        param = _naming_field(extension)
        if rights.bound is not None:
            only = self._bound(rights.bound, only, without, param)
        if only is None:
            names = [n for n in self.usable(rights, purpose) if n not in (without or ())]
        else:
            self._check_allowed(rights, purpose, sorted(only), param)
            names = [n for n in self.names if n == ANCHOR or n in only]
        slots = tuple(self.names.index(name) for name in names)
        return Chosen(tuple(names), slots, purpose, extension.routing, self.digest)

    def check_still_allowed(self, rights: Rights, chosen: Chosen) -> None:
        """Raises ``RefusalError`` (403) when a request that is running may not go on."""
        told = _no_longer(rights, chosen)
        if told is not None:
            raise RefusalError(403, told, code="no_longer_allowed")
        for name in chosen.names:
            told = self.why_not(rights, chosen.purpose, name)
            if told is not None:
                raise RefusalError(403, told, code="expert_withdrawn")

    def _wished(
        self, rights: Rights, model: str, extension: Extension
    ) -> tuple[frozenset[str] | None, frozenset[str] | None]:
        try:
            named = parse_model(model, self.name, self.names)
        except UnknownModelError:
            told = f"no such model here: {_shown(model)}; {self._models(rights, model)}"
            raise RefusalError(404, told, code="model_not_found", param="model") from None
        only = None if extension.experts is None else frozenset(extension.experts)
        without = None if extension.without is None else frozenset(extension.without)
        self._check_known("experts", only or ())
        self._check_known("without", without or ())
        if ANCHOR in (without or ()):
            raise bad_request("the anchor is in every set", "moiety.without")
        if model != self.name and (only is not None or without is not None):
            raise bad_request("the model's name and moiety both name a set", "moiety")
        only = named.only if only is None else only - {ANCHOR}
        return only, named.without if without is None else without

    def _models(self, rights: Rights, model: str) -> str:
        """What somebody should know who asked for a model that is none."""
        if not model.startswith((f"{self.name}+", f"{self.name}-")):
            return "/v1/models lists those there are"
        own = ", ".join(name for name in self.names[1:] if rights.may_use(name))
        told = own or "this key has none"
        return f"{self.name} takes experts after + or after -, not after both, each once: {told}"

    def _check_known(self, field: str, names: Iterable[str]) -> None:
        for name in sorted(names):
            if name not in self._experts:
                raise bad_request(
                    f"no expert called {_shown(name)}", f"moiety.{field}", "unknown_expert"
                )

    def _bound(
        self,
        bound: Sequence[str],
        only: frozenset[str] | None,
        without: frozenset[str] | None,
        param: str,
    ) -> frozenset[str]:
        whole = frozenset(bound) - {ANCHOR}
        if (only is not None and only != whole) or whole & (without or frozenset()):
            raise RefusalError(
                403,
                f"this key is bound to one set: {', '.join([ANCHOR, *sorted(whole)])}",
                code=NOT_ALLOWED,
                param=param,
            )
        return whole

    def _check_allowed(
        self, rights: Rights, purpose: str | None, only: Sequence[str], param: str
    ) -> None:
        reasons = [
            f"{name} is not in this release"
            if name not in self._experts
            else self.why_not(rights, purpose, name)
            for name in only
        ]
        told = [reason for reason in reasons if reason is not None]
        if told:
            raise RefusalError(403, "; ".join(told), code=NOT_ALLOWED, param=param)

    def accept(self, order: Path) -> orders.VerifiedOrder:
        """Checks an owner's order against what is served.

        Raises:
            TrustError: not an order, not the owner's, or not for the bundle that is served.
        """
        verified = orders.verify_order(order)
        name = verified.order.owner
        if name not in self._experts:
            raise PolicyError(f"{name} is not in this release", where=self.folder)
        withdrawal.check_order(self._release, self._experts[name], verified)
        return verified

    def leave(self, names: Iterable[str]) -> None:
        """From now on these are used by nobody."""
        self._gone |= set(names)

    def withdraw_on_disk(self, name: str, order: Path, key: Path, receipt: Path) -> dict[str, Any]:
        """The release's folder follows, with a signed receipt. Slow: not for the event loop.

        Raises:
            MoietyError: the folder cannot be written, or does not hold.
        """
        done = withdrawal.withdraw(
            self.folder, name, order, in_place=True, key=key, receipt=receipt
        )
        return {"receipt": str(done.receipt), "roster": done.digest, "flags": done.flags}

    def read_again(self) -> list[str]:
        """Reads the folder's roster anew; returns who of those that were loaded is not in it.

        Newcomers are not loaded.

        Raises:
            TrustError: what lies there now does not hold, or is another anchor's.
        """
        before, known = self.digest, set(self._gone)
        release = open_release(self.folder)
        if release.roster.anchor != self._release.roster.anchor:
            remedy = "start the server anew"
            raise PolicyError(
                "another anchor's release lies here now", where=self.folder, remedy=remedy
            )
        bundles = {expert.name: expert.bundle for expert in release.roster.experts}
        gone = [n for n in self.names[1:] if bundles.get(n) != self._experts[n].bundle]
        self.leave(gone)
        roster, loaded = release.roster, self._release.roster
        # Tables that were tuned, or another number of experts a token, are served until a restart.
        if (roster.strict, roster.top_k) == (loaded.strict, loaded.top_k):
            self._release = release
        if self._gone > known:
            journal.left(sorted(self._gone - known), before, self.digest)
        return gone

    def describe(self) -> list[dict[str, Any]]:
        """Every expert that was loaded, with its terms: all of it for whoever administers."""
        return [
            {
                "slot": slot,
                "name": name,
                "bundle": self._experts[name].bundle,
                "terms": _terms(self._experts[name].terms),
                "state": self._state(name),
            }
            for slot, name in enumerate(self.names)
        ]

    def _state(self, name: str) -> str:
        terms = self._experts[name].terms
        if name in self._gone:
            return "withdrawn"
        return "expired" if terms is not None and terms.expired(self._today()) else "served"


def _naming_field(extension: Extension) -> str:
    """The field by which a request names its set."""
    if extension.experts is not None:
        return "moiety.experts"
    return "model" if extension.without is None else "moiety.without"


def _may_say(rights: Rights, purpose: str | None) -> bool:
    return purpose is None or ANY in rights.purposes or purpose in rights.purposes


def _no_longer(rights: Rights, chosen: Chosen) -> str | None:
    """Why a key's policy no longer allows what it allowed; None when it does."""
    if not _may_say(rights, chosen.purpose):
        return f"key {rights.id} may no longer ask for {chosen.purpose}"
    if chosen.routing and not rights.may_see_routing:
        return f"key {rights.id} may no longer see the routing"
    if rights.bound is not None and {ANCHOR, *rights.bound} != set(chosen.names):
        return f"key {rights.id} is bound to another set now"
    lost = [name for name in chosen.names if name != ANCHOR and not rights.may_use(name)]
    return f"{lost[0]} is no longer among this key's experts" if lost else None


def _terms(terms: papers.Terms | None) -> dict[str, Any] | None:
    return None if terms is None else terms.model_dump(mode="json")


def _shown(name: str) -> str:
    """A caller's word told back: short, in ASCII, in quotes."""
    return ascii(name[:100])

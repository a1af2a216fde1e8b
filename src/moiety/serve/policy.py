"""Who may ask, for which experts, what for and how often: ``policy.toml``.

Deny by default: a key that names no experts gets the anchor alone, one that names no purposes gets
experts whose owners allow any, and limits have numbers unless the file says others.

Keys are stored as SHA-256. Slow hashes are for passwords, which people choose and others guess; a
key is 256 random bits, which nobody guesses however fast the hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator

from moiety.bundle import papers
from moiety.errors import ConfigError
from moiety.files import read_toml

POLICY_MAX_BYTES = 2**20
KEY_PREFIX = "moiety-"
EVERYBODY = "all"
ANY = "any"
NOT_KEYS = ("local", "admin")
"""Whoever asks without a policy, and whoever administers, in metrics and usage."""


REMEDY = "begin each key with [[keys]]; moiety serve-key makes one; docs/formats.md has the fields"


def _check_hash(text: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise ValueError("must be sha256: and the 64 hex digits that moiety serve-key prints")
    return text


def _check_id(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", text):
        raise ValueError("must be at most 63 lower-case letters, digits, '-' and '_', as in my-app")
    return text


def _check_free(text: str) -> None:
    if text in NOT_KEYS:
        raise ValueError(f"{text!r} is what metrics and usage call somebody else")


def _check_purpose(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise ValueError("must be at most 63 lower-case letters, digits and '-', as in research")
    return text


KeyHash = Annotated[str, AfterValidator(_check_hash)]
KeyName = Annotated[str, AfterValidator(_check_id)]
Purpose = Annotated[str, AfterValidator(_check_purpose)]
Limit = Annotated[int, Field(ge=1, le=2**40)]
Experts = Annotated[tuple[papers.Owner, ...], Field(max_length=4096)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Rights(_Table):
    """What whoever asks may have. An expert's own terms apply on top of it.

    ``experts`` of None are all; ``bound`` is the one set that every request uses. Limits of None
    do not limit. ``hash`` is that of the key that was sent; None where none is asked for.
    """

    id: KeyName
    hash: KeyHash | None = None
    experts: Experts | None = ()
    bound: Experts | None = None
    purposes: Annotated[tuple[Purpose, ...], Field(max_length=64)] = ()
    requests_per_minute: Limit | None = 60
    tokens_per_minute: Limit | None = 60_000
    concurrent: Limit | None = 8
    may_see_routing: bool = False

    def may_use(self, expert: str) -> bool:
        """Whether the policy, which is not yet the owner's terms, lets it use an expert."""
        if self.bound is not None:
            return expert in self.bound
        return self.experts is None or expert in self.experts


class Key(Rights):
    """A key in a policy: ``hash`` is that of the key itself, which nobody keeps."""

    hash: KeyHash

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        _check_free(self.id)
        if self.bound is not None and self.experts != ():
            raise ValueError("bound and experts exclude each other")
        if ANY in self.purposes and len(self.purposes) > 1:
            raise ValueError("'any' stands alone")
        return self


class Admin(_Table):
    """Who may use the admin port."""

    hash: KeyHash


class PolicyPaper(_Table):
    """``policy.toml``."""

    admin: Admin | None = None
    keys: Annotated[tuple[Key, ...], Field(max_length=10_000)] = ()

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        ids: set[str] = set()
        holders = {} if self.admin is None else {self.admin.hash: "the admin"}
        for key in self.keys:
            if key.id in ids:
                raise ValueError(f"two keys have the id {key.id}")
            if key.hash in holders:
                raise ValueError(f"{holders[key.hash]} and key {key.id} have one hash")
            ids.add(key.id)
            holders[key.hash] = f"key {key.id}"
        return self


LOCAL = Rights(
    id=NOT_KEYS[0],
    experts=None,
    purposes=(ANY,),
    requests_per_minute=None,
    tokens_per_minute=None,
    concurrent=None,
    may_see_routing=True,
)
"""Whoever asks a server without a policy, which listens on this machine alone."""

ADMIN = LOCAL.model_copy(update={"id": NOT_KEYS[1]})
"""Whoever has the admin's key."""


def local_rights(purpose: str | None) -> Rights:
    """``LOCAL``, or, with a purpose, that and no other: requests need not say it.

    Raises:
        ConfigError: not a purpose.
    """
    if purpose is None:
        return LOCAL
    if purpose == ANY:
        raise ConfigError(
            "'any' is no purpose", where="--purpose", remedy="say what for, such as research"
        )
    try:
        return Rights.model_validate({**LOCAL.model_dump(), "purposes": (purpose,)})
    except ValidationError:
        raise ConfigError(
            f"not a purpose: {purpose[:100]!a}",
            where="--purpose",
            remedy="lower case letters, digits and '-', such as --purpose research",
        ) from None


class Policy:
    """A policy in force."""

    def __init__(self, paper: PolicyPaper) -> None:
        self.keys = {key.id: key for key in paper.keys}
        self.admin_hash = None if paper.admin is None else paper.admin.hash
        self.by_hash: dict[str | None, Key] = {key.hash: key for key in paper.keys}

    def find(self, secret: str) -> Key | None:
        """Whose key it is. Every key is compared, in constant time: none is found sooner."""
        told, found = hash_key(secret), None
        for key in self.keys.values():
            if hmac.compare_digest(key.hash, told):
                found = key
        return found


def is_key(secret: str, kept: str | None) -> bool:
    """Whether a key has this hash, in constant time. No hash: no key fits."""
    return kept is not None and hmac.compare_digest(kept, hash_key(secret))


def check_id(text: str) -> None:
    """Raises ``ConfigError`` for what a policy would not take as a key's id."""
    try:
        _check_free(_check_id(text))
    except ValueError as error:
        told = f"{papers.harmless(text[:80])}: {error}"
        raise ConfigError(told, where="ID", remedy="take another id, such as my-app") from None


def new_key() -> tuple[str, str]:
    """A new key, to be shown once, and the hash that a policy keeps."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    return secret, hash_key(secret)


def hash_key(secret: str) -> str:
    """``sha256:`` and the digest of a key."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_policy(path: Path) -> Policy:
    """The policy in a TOML file.

    Raises:
        ConfigError: not TOML, an unknown or missing field, a value that is none.
    """
    table = read_toml(path, POLICY_MAX_BYTES)
    try:
        return Policy(PolicyPaper.model_validate(_spelled_out(table)))
    except ValidationError as error:
        raise ConfigError(_problem(error, table), where=path, remedy=REMEDY) from None


def _spelled_out(table: dict[str, Any]) -> dict[str, Any]:
    """TOML's lists as the tuples that a strict model takes."""
    keys = table.get("keys")
    return {**table, "keys": tuple(map(_key, keys))} if isinstance(keys, list) else table


def _key(table: Any) -> Any:
    """One key; ``experts = "all"`` is the None that it means, which TOML cannot write."""
    if not isinstance(table, dict):
        return table
    key = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
    return {**key, "experts": None} if key.get("experts") == EVERYBODY else key


def _problem(error: ValidationError, table: dict[str, Any]) -> str:
    """What is wrong with a policy, and of which key."""
    fault = papers.first_fault(error)
    place, told = list(fault["loc"]), papers.words(fault)
    kind: type[BaseModel] = Admin if place[:1] == ["admin"] else PolicyPaper
    if place[:1] == ["keys"] and len(place) > 1:
        kind, place[:2] = Key, [_called(table["keys"], int(place[1]))]
    if fault["type"] == "extra_forbidden":
        told += f"; there are {', '.join(kind.model_fields)}"
    names = [papers.harmless(part[:80]) for part in place if isinstance(part, str)]
    return ": ".join([*names, told])


def _called(keys: Sequence[Any], at: int) -> str:
    """A key by its id, or by its place in the file where it has none."""
    named = isinstance(keys[at], dict) and isinstance(keys[at].get("id"), str)
    return f"key {keys[at]['id']}" if named else f"key number {at + 1}"


def unknown_experts(policy: Policy, names: Iterable[str]) -> list[tuple[str, str]]:
    """Experts that a policy names and this release lacks, each after the key that names it."""
    known = set(names)
    return [
        (key.id, name)
        for key in policy.keys.values()
        for name in sorted({*(key.experts or ()), *(key.bound or ())} - known)
    ]

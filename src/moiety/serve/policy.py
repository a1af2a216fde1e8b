"""Who may ask, for which experts, what for and how often: ``policy.toml``.

Deny by default: a key that names no experts gets the anchor alone, one that names no purposes gets
experts whose owners allow any, and limits have numbers unless the file says others.

Keys are stored as SHA-256. Slow hashes are for passwords, which people choose and others guess; a
key is 256 random bits, which nobody guesses however fast the hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moiety.bundle import papers
from moiety.errors import ConfigError, FormatError
from moiety.files import read_limited

POLICY_MAX_BYTES = 2**20
KEY_PREFIX = "moiety-"
EVERYBODY = "all"
ANY = "any"

KeyHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
KeyName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Purpose = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
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
        hashes = [key.hash for key in self.keys] + ([self.admin.hash] if self.admin else [])
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have one id")
        if len(set(hashes)) < len(hashes):
            raise ValueError("a hash occurs twice")
        return self


LOCAL = Rights(
    id="local",
    experts=None,
    purposes=(ANY,),
    requests_per_minute=None,
    tokens_per_minute=None,
    concurrent=None,
    may_see_routing=True,
)
"""Whoever asks a server without a policy, which listens on this machine alone."""


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
    try:
        table = tomllib.loads(read_limited(path, POLICY_MAX_BYTES, follow=True).decode("utf-8"))
        # By way of JSON, whose lists are tuples to a strict model.
        paper = PolicyPaper.model_validate_json(json.dumps(_spelled_out(table)))
    except FormatError as error:
        raise ConfigError(error.message, where=path) from None
    except ValidationError as error:
        raise ConfigError(papers.first_problem(error), where=path) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"not a policy: {str(error)[:200]}", where=path) from None
    return Policy(paper)


def _spelled_out(table: dict[str, Any]) -> dict[str, Any]:
    """``experts = "all"`` as the null that it means; a null itself cannot be written in TOML."""
    keys = table.get("keys")
    if not isinstance(keys, list):
        return table
    return {**table, "keys": [_with_everybody(key) for key in keys]}


def _with_everybody(key: Any) -> Any:
    if isinstance(key, dict) and key.get("experts") == EVERYBODY:
        return {**key, "experts": None}
    return key


def unknown_experts(policy: Policy, names: Iterable[str]) -> list[str]:
    """Experts that a policy names and this release lacks."""
    known = set(names)
    told = [
        name for key in policy.keys.values() for name in (*(key.experts or ()), *(key.bound or ()))
    ]
    return sorted(set(told) - known)

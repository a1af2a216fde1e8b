"""``audit-policy.toml``: what an owner accepts, in a file of a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from moiety.bundle import audits, papers
from moiety.errors import ConfigError
from moiety.files import read_toml

_POLICY_MAX_BYTES: Final = 64 * 2**10


def read_policy(path: Path | None) -> audits.Policy:
    """The policy in a TOML file, or the default one; what the file leaves out keeps its default.

    Raises:
        ConfigError: not TOML, an unknown key, a value of another type, a threshold that warns only
            above what fails.
    """
    if path is None:
        return audits.Policy()
    given = read_toml(path, _POLICY_MAX_BYTES)
    values = audits.Policy().model_dump()
    _check_known(given, values, "", path)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(values[key], dict)
        values[key] = {**values[key], **value} if both else value
    try:
        return audits.Policy.model_validate(values)
    except ValidationError as error:
        remedy = "docs/formats.md has the default policy"
        raise ConfigError(papers.first_problem(error), where=path, remedy=remedy) from None


def _check_known(given: dict[str, Any], known: dict[str, Any], prefix: str, path: Path) -> None:
    for key, value in given.items():
        if key not in known:
            names = ", ".join(prefix + name for name in known)
            raise ConfigError(
                f"unknown key {prefix + key!r}", where=path, remedy=f"known are {names}"
            )
        if isinstance(value, dict) and isinstance(known[key], dict):
            _check_known(value, known[key], f"{prefix}{key}.", path)

"""What an owner allows: licence, purposes, a last day; and ``terms.toml``, where the owner says it.

Reading a signed manifest accepts every well-formed licence id, so that a newer list of licences
does not break an older reader. Reading ``terms.toml`` accepts only ids we know, because there a
typing error can still be mended.
"""

from __future__ import annotations

import difflib
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.functional_validators import AfterValidator

from moiety.bundle.faults import first_problem
from moiety.errors import ConfigError
from moiety.files import read_toml

_LICENCES = """
0BSD AFL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-2.0 BSD-1-Clause
BSD-2-Clause BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 BUSL-1.1
CC-BY-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0
CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CC-BY-ND-3.0 CC-BY-ND-4.0
CC-BY-SA-2.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDDL-1.0 CDDL-1.1 CDLA-Permissive-1.0
CDLA-Permissive-2.0 CDLA-Sharing-1.0 CECILL-2.1 CECILL-B CECILL-C ECL-2.0 EPL-1.0 EPL-2.0
EUPL-1.1 EUPL-1.2 GFDL-1.3-only GFDL-1.3-or-later GPL-2.0-only GPL-2.0-or-later GPL-3.0-only
GPL-3.0-or-later ISC LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later MIT MIT-0
MPL-1.1 MPL-2.0 MS-PL MS-RL MulanPSL-2.0 NCSA ODbL-1.0 ODC-By-1.0 OFL-1.1 OGL-UK-3.0 OSL-3.0
PDDL-1.0 PolyForm-Noncommercial-1.0.0 PolyForm-Small-Business-1.0.0 PostgreSQL Python-2.0
SSPL-1.0 UPL-1.0 Unlicense W3C WTFPL Zlib etalab-2.0
"""

KNOWN_LICENCES = frozenset(_LICENCES.split())
"""The ids of the SPDX licence list that data and models are commonly published under."""

_LICENCE = re.compile(r"(LicenseRef-|(?!LicenseRef-))[A-Za-z0-9][A-Za-z0-9.+-]{0,99}")
_PURPOSE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CONTACT = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]*")
_TERMS_MAX_BYTES = 64 * 2**10


def _check_licence(text: str) -> str:
    if not _LICENCE.fullmatch(text):
        raise ValueError("not an SPDX licence id, LicenseRef-NAME or NOASSERTION")
    return text


def _check_purposes(purposes: tuple[str, ...]) -> tuple[str, ...]:
    if list(purposes) != sorted(set(purposes)) or not purposes:
        raise ValueError("purposes must be sorted, each once, at least one")
    if not all(_PURPOSE.fullmatch(purpose) for purpose in purposes):
        raise ValueError("a purpose is lower-case letters, digits and '-', such as 'research'")
    if "any" in purposes and len(purposes) > 1:
        raise ValueError("'any' stands alone")
    return purposes


def _check_contact(text: str) -> str:
    if not _CONTACT.fullmatch(text):
        raise ValueError("a contact is one line without control characters")
    return text


class Terms(BaseModel):
    """What an owner allows. ``expires`` is the last day on which the expert may be used."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    licence: Annotated[str, AfterValidator(_check_licence)] = "LicenseRef-Proprietary"
    purposes: Annotated[tuple[str, ...], Field(max_length=64), AfterValidator(_check_purposes)] = (
        "any",
    )
    expires: date | None = None
    contact: Annotated[str, Field(max_length=200), AfterValidator(_check_contact)] | None = None

    def expired(self, today: date) -> bool:
        """Whether the last day is over."""
        return self.expires is not None and today > self.expires

    def summary(self) -> str:
        """One line for people."""
        until = "without a last day" if self.expires is None else f"until {self.expires}"
        return f"{self.licence}, for {', '.join(self.purposes)}, {until}"


def read_terms(path: Path) -> Terms:
    """The terms in a TOML file: ``licence``, ``purposes``, ``expires``, ``contact``.

    They stand at the top level or in a table ``[terms]``; what is left out keeps its default.

    Raises:
        ConfigError: not TOML, an unknown key, a licence nobody knows, a date that is none.
    """
    table = _read_table(path)
    unknown = sorted(set(table) - set(Terms.model_fields))
    if unknown:
        known = ", ".join(Terms.model_fields)
        raise ConfigError(f"unknown key {unknown[0]!r}", where=path, remedy=f"known are {known}")
    _check_known(table.get("licence"), path)
    try:
        return Terms.model_validate(_prepared(table, path))
    except ValidationError as error:
        remedy = "docs/formats.md has the fields"
        raise ConfigError(first_problem(error), where=path, remedy=remedy) from None


def _read_table(path: Path) -> dict[str, Any]:
    table = read_toml(path, _TERMS_MAX_BYTES)
    if isinstance(table.get("terms"), dict) and len(table) == 1:
        return dict(table["terms"])
    return table


def _prepared(table: dict[str, Any], path: Path) -> dict[str, Any]:
    ready = dict(table)
    purposes = ready.get("purposes")
    if isinstance(purposes, list) and all(isinstance(purpose, str) for purpose in purposes):
        ready["purposes"] = tuple(sorted(set(purposes)))
    if isinstance(ready.get("expires"), str):
        try:
            ready["expires"] = date.fromisoformat(ready["expires"])
        except ValueError:
            raise ConfigError(
                f"expires: {ready['expires']!r} is not a date", where=path, remedy="2030-12-31"
            ) from None
    if isinstance(ready.get("expires"), datetime):
        raise ConfigError("expires: a day without a time", where=path, remedy="2030-12-31")
    return ready


def _check_known(licence: Any, path: Path) -> None:
    if not isinstance(licence, str) or licence in KNOWN_LICENCES or licence == "NOASSERTION":
        return
    if licence.startswith("LicenseRef-") and _LICENCE.fullmatch(licence):
        return
    close = difflib.get_close_matches(licence, sorted(KNOWN_LICENCES), n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? Otherwise " if close else ""
    raise ConfigError(
        f"licence: {licence!r} is not an SPDX id we know",
        where=path,
        remedy=f"{guess}write 'LicenseRef-YOUR-NAME', or 'NOASSERTION'",
    )

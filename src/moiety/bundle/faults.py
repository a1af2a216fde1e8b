"""What is wrong with a paper, or with a file that a person wrote, in plain words.

Papers come from others: what is told of them can harm no terminal and no log.
"""

from __future__ import annotations

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_PLACE_MAX_CHARS, _WORDS_MAX_CHARS = 80, 200

_UNPRINTABLE = re.compile(r"[^ -~]")
_UNKNOWN = "extra_forbidden"
_PLAIN = {
    _UNKNOWN: "no such field",
    "missing": "missing",
    "tuple_type": "must be a list, in square brackets",
    "list_type": "must be a list, in square brackets",
    "too_long": "has more than {max_length:,} entries",
    "too_short": "has fewer than {min_length:,} entries",
    "model_type": "must be a table of fields",
    "dict_type": "must be a table of fields",
    "string_type": "must be text, in quotes",
    "string_too_long": "is longer than {max_length:,} characters",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
}
"""The library's names of what may be wrong, in words for people who do not know it."""


def first_problem(error: ValidationError) -> str:
    """What is wrong, in one line: the place and the words."""
    fault = first_fault(error)
    place = ".".join(harmless(str(part)[:_PLACE_MAX_CHARS]) for part in fault["loc"])
    return f"{place}: {words(fault)}" if place else words(fault)


def first_fault(error: ValidationError) -> ErrorDetails:
    """The fault to tell of. A misspelt field is missing too: what was written goes first."""
    faults = error.errors(include_url=False, include_input=False)
    return next((one for one in faults if one["type"] == _UNKNOWN), faults[0])


def words(fault: ErrorDetails) -> str:
    """A fault without its place."""
    if fault["type"] in _PLAIN:
        return _PLAIN[fault["type"]].format(**fault.get("ctx", {}))
    told = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return harmless(told[:_WORDS_MAX_CHARS])


def harmless(text: str) -> str:
    """A text in one line of printable ASCII; everything else is spelled out as ``\\x1b``."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)

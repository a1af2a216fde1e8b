"""From bytes to a request: how many values a body holds is known before one of them is made."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ValidationError

from moiety.errors import FormatError
from moiety.files import parse_json
from moiety.serve.refusals import RefusalError, not_valid
from moiety.serve.requests import Asked

VALUES_MAX = 2**18
"""Values in one body: as many as token ids in 128 prompts of 2,048."""

AskedType = TypeVar("AskedType", bound=Asked)


def read_request(kind: type[AskedType], data: bytes) -> AskedType:
    """A body as a request. Slow for a large one.

    Raises:
        RefusalError: 413 for too many values, 400 for no JSON, or naming the first wrong field.
    """
    if _holds_too_many(data):
        told = f"the body holds more than {VALUES_MAX:,} values"
        raise RefusalError(413, told, code="body_too_large")
    try:
        return kind.model_validate(_value(data))
    except ValidationError as error:
        raise not_valid(error) from None


def _holds_too_many(data: bytes) -> bool:
    """Whether JSON spells more values than may be: small objects take 30 times their bytes."""
    if _count_signs(data) <= VALUES_MAX:
        return False
    # Signs in texts do not count. What a text escapes goes first: then quotes are its ends.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * VALUES_MAX:
        return True
    return _count_signs(b"".join(bare.split(b'"')[::2])) > VALUES_MAX


def _count_signs(data: bytes) -> int:
    # Every value but the first follows one of these, or a name that does.
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _value(data: bytes) -> Any:
    try:
        value = parse_json(data, "the body")
        if b"\\u" in data:
            # Half of a surrogate pair can be spelled, and is no text.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except FormatError as error:
        raise RefusalError(400, f"the body is {error.message[:200]}", code="not_json") from None
    except UnicodeEncodeError:
        raise RefusalError(400, "the body spells what is no text", code="not_json") from None
    return value

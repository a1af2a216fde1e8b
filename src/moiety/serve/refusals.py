"""What a server refuses: one error type, and its one form on the wire, everywhere.

The form is OpenAI's: ``{"error": {"message", "type", "param", "code"}}``; ``param`` is a string or
null. Clients take it apart, so nothing else is ever sent with a status of 400 or more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RefusalError(Exception):
    """A request that gets no answer: ``status``, and what the caller is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _KINDS.get(self.status, usual)
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    def response(self) -> Response:
        """The whole answer."""
        return json_response(self.body, self.status, self.headers)


def bad_request(
    message: str, param: str | None = None, code: str = "invalid_value"
) -> RefusalError:
    """A 400 that names the field."""
    return RefusalError(400, message, code=code, param=param)


def no_key(message: str) -> RefusalError:
    """A 401. Made anew each time: one that is raised again keeps the frames of all times before."""
    headers = {"WWW-Authenticate": "Bearer"}
    return RefusalError(401, message, code="invalid_api_key", headers=headers)


def too_busy(message: str, retry_seconds: float, code: str) -> RefusalError:
    """A 429 that says when to come again, in whole seconds and at least one."""
    seconds = str(max(1, int(retry_seconds) + (retry_seconds % 1 > 0)))
    return RefusalError(429, message, code=code, headers={"Retry-After": seconds})


def not_valid(error: ValidationError) -> RefusalError:
    """The first thing that is wrong with a body. What was sent is never told back."""
    errors = error.errors(include_url=False, include_input=False)
    # Of the forms that a field may have, the one whose kind fits is the one that was meant.
    first = min(errors, key=lambda one: one["type"].endswith("_type"))
    unknown = first["type"] == "extra_forbidden"
    place = [str(part) for part in first["loc"][:-1] if _is_field(part)]
    place += [str(part) for part in first["loc"][-1:] if unknown or _is_field(part)]
    param = ".".join(place)[:200].encode("ascii", "replace").decode() or None
    if unknown:
        return bad_request(f"unknown field: {param}", param, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"missing field: {param}", param, "missing_required_parameter")
    if first["type"] == "not_supported":
        return bad_request(first["msg"], first["ctx"]["name"], "unsupported_parameter")
    if first["type"] == "model_type":
        return bad_request(f"{param or 'the body'} should be an object", param)
    words = first["msg"].removeprefix("Value error, ")[:300]
    return bad_request(f"{param}: {words}" if param else words, param)


def _is_field(part: int | str) -> bool:
    # Alternatives of a union stand in a place as the names of their types.
    kinds = ("str", "int", "float")
    return isinstance(part, int) or not ("[" in part or part.removeprefix("constrained-") in kinds)


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON answer that no cache keeps."""
    return Response(
        to_json(body),
        status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def to_json(value: Any) -> bytes:
    """JSON in ASCII, without NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")

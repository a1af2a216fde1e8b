"""The public routes: completions, chats, models, who is here, usage, health, metrics.

In OpenAI's forms, where OpenAI has one.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from moiety.serve import metrics, playground
from moiety.serve.answering import BROKEN, EventStream, whole
from moiety.serve.asking import begin
from moiety.serve.door import ClientGoneError, Door, read_body, while_there
from moiety.serve.house import House
from moiety.serve.naming import ANCHOR, UnknownModelError, parse_model
from moiety.serve.policy import Rights
from moiety.serve.reading import read_request
from moiety.serve.refusals import RefusalError, bad_request, json_response, not_valid
from moiety.serve.requests import (
    Asked,
    ChatRequest,
    CompletionRequest,
    Extension,
    RosterQuery,
    UsageQuery,
)
from moiety.serve.served import purpose_of
from moiety.serve.usage import BooksError

OPEN = frozenset({"/health", "/openapi.json", *playground.PATHS})
"""What is answered without a key: whether it works, how it is used, and the empty page."""

CLIENT_GONE = 499
LONG_BYTES = 2**16
"""A body that is larger is not read in the event loop."""

_CODES = {404: "not_found", 405: "method_not_allowed"}

QueryType = TypeVar("QueryType", RosterQuery, UsageQuery)


def public_app(house: House) -> ASGIApp:
    """The application of the public port."""
    app = bare_app("Moiety")
    _add_answers(app, house)
    _add_models(app, house)
    _add_own(app, house)
    local = house.policy is None
    playground.add_page(app, keys=not local)
    _add_states(app, house)
    return Door(app, house.find, OPEN, house.metrics.answered, local=local)


def bare_app(title: str) -> FastAPI:
    """An application without routes, in which every error has one form."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusalError)
        return error.response()

    async def unknown(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "invalid_request")
        told = f"{error.detail}; see /openapi.json"
        return RefusalError(error.status_code, told, code=code, headers=error.headers).response()

    async def broken(_request: Request, _error: Exception) -> Response:
        return BROKEN.response()

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(RefusalError, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(Exception, broken)
    return app


def _add_answers(app: FastAPI, house: House) -> None:
    @app.post("/v1/completions", **_told(CompletionRequest))
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await _answer(house, request, CompletionRequest)

    @app.post("/v1/chat/completions", **_told(ChatRequest))
    async def chat(request: Request) -> Response:
        """Answer in a chat; where the tokenizer has a chat template."""
        return await _answer(house, request, ChatRequest)


async def _answer(house: House, request: Request, kind: type[Asked]) -> Response:
    key_hash = request.state.key_hash
    grant = house.limits.enter(house.rights(key_hash))
    try:
        data = await read_body(request.scope, request.receive)
        read = partial(read_request, kind, data)
        asked = await house.work(read) if len(data) > LONG_BYTES else read()
        begun = await begin(house, key_hash, asked, grant)
    except BaseException:
        house.limits.end(grant, 0)
        raise
    if asked.stream:
        return EventStream(house, begun, usage=asked.wants_usage)
    try:
        answer: Response = await while_there(request.receive, whole(house, begun))
        return answer
    finally:
        with suppress(RefusalError):
            await house.runs.finish(begun.run)


def _rights(house: House, request: Request) -> Rights:
    """What whoever looks may have now; a look is counted."""
    rights = house.rights(request.state.key_hash)
    house.limits.look(rights)
    return rights


def _add_models(app: FastAPI, house: House) -> None:
    served = house.served

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", **_asked_by(RosterQuery))
    async def models(request: Request) -> Response:
        """Every model id that this key can use for a purpose."""
        rights = _rights(house, request)
        said = _query(RosterQuery, request).purpose
        ids = _model_ids(house, rights, said)
        return json_response({"object": "list", "data": [_model(house, one) for one in ids]})

    @app.get("/v1/models/{model:path}", **_asked_by(RosterQuery))
    async def model(request: Request, model: str) -> Response:
        """One model id, and the experts a request with it would use now for a purpose."""
        rights = _rights(house, request)
        said = Extension(purpose=_query(RosterQuery, request).purpose)
        chosen = served.choose(rights, model, said)
        told = {"experts": list(chosen.names), "roster": chosen.digest}
        return json_response({**_model(house, model), "moiety": told})


def _model_ids(house: House, rights: Rights, said: str | None) -> list[str]:
    """The whole set, each expert alone, everybody but one: what has a name that reads one way."""
    served, found = house.served, [house.served.name]
    purpose = purpose_of(rights, said)
    if rights.bound is not None:
        return found
    usable = [name for name in served.usable(rights, purpose) if name != ANCHOR]
    for sign in "+-":
        for name in usable:
            with suppress(UnknownModelError):
                parse_model(f"{served.name}{sign}{name}", served.name, served.names)
                found.append(f"{served.name}{sign}{name}")
    return found


def _model(house: House, model: str) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": house.served.created,
        "owned_by": house.served.name,
    }


def _add_own(app: FastAPI, house: House) -> None:
    """What a key may know of the experts, and of itself."""

    @app.get("/v1/roster", **_asked_by(RosterQuery))
    async def roster(request: Request) -> Response:
        """The experts that this key may be given, with terms, and why one may not be used now."""
        rights = _rights(house, request)
        query = _query(RosterQuery, request)
        return json_response(house.served.roster_for(rights, query.purpose))

    @app.get("/v1/usage", **_asked_by(UsageQuery))
    async def usage(request: Request) -> Response:
        """What this key used in the latest hours, by hour and expert."""
        key = _rights(house, request).id
        query = _query(UsageQuery, request)
        try:
            rows = await house.work(partial(house.books.read, key, query.hours))
        except BooksError as error:
            raise RefusalError(503, str(error), code="usage_not_read") from error
        return json_response({"key": key, "hours": query.hours, "data": rows})


def _query(kind: type[QueryType], request: Request) -> QueryType:
    """A query string. Raises ``RefusalError`` for a field that is unknown, wrong or said twice."""
    # One more than there are is enough to be refused for.
    fields = request.query_params.multi_items()[: len(kind.model_fields) + 1]
    if len(dict(fields)) < len(fields):
        raise bad_request("a field of the query is there twice")
    try:
        return kind.model_validate_strings(dict(fields))
    except ValidationError as error:
        raise not_valid(error) from None


def _add_states(app: FastAPI, house: House) -> None:
    told = {**answers(), 503: answers()[200]}

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses=told, openapi_extra={"security": []})
    async def health() -> Response:
        """200 when requests are answered, 503 and why when they are not."""
        problem = house.why_not_ready()
        if problem is None:
            return json_response({"status": "ready"})
        return json_response({"status": "not ready", "why": problem}, 503)

    @app.get("/metrics", responses=answers("text/plain", {"type": "string"}))
    async def scrape() -> Response:
        """For Prometheus; with the admin key where there is a policy."""
        return Response(house.metrics.text(), media_type=metrics.CONTENT_TYPE)


_REFUSED = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_OBJECT = {"type": "object"}
_STATUSES = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503)
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": "refused", "content": {"application/json": {"schema": _REFUSED}}}
    for status in _STATUSES
}


def answers(kind: str = "application/json", schema: Any = _OBJECT) -> dict[int | str, Any]:
    """What the description says of a route: its answer, and every refusal."""
    done = {"description": "the answer", "content": {kind: {"schema": schema}}}
    return {200: done, **REFUSALS}


def _told(kind: type[Asked]) -> dict[str, Any]:
    """What the description says of a route whose body is read by hand."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    answer = {"application/json": {"schema": _OBJECT}, "text/event-stream": {}}
    done = {200: {"description": "the answer, whole or as events", "content": answer}}
    return {"responses": done | REFUSALS, "openapi_extra": {"requestBody": body}}


def _asked_by(kind: type[QueryType]) -> dict[str, Any]:
    """What the description says of a route whose query string is read by hand."""
    fields = [
        {"name": name, "in": "query", "required": False, "schema": _without_null(schema)}
        for name, schema in kind.model_json_schema()["properties"].items()
    ]
    return {"responses": answers(), "openapi_extra": {"parameters": fields}}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query string cannot spell null: a field that may be null is one that may be left out."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return dict(kinds[0])


def _description(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        told = FastAPI.openapi(app)
        kinds = [(kind, "validation") for kind in (CompletionRequest, ChatRequest)]
        _, defs = models_json_schema(kinds, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        told.setdefault("components", {}).setdefault("schemas", {}).update(defs["$defs"])
        told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        told["security"] = [{"key": []}]
        app.openapi_schema = told
    return app.openapi_schema

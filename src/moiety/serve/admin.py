"""The admin port: withdrawals, a new policy, who is served. Another port, another key."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastapi import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from moiety.bundle import orders, papers
from moiety.errors import ConfigError, FormatError, TrustError
from moiety.files import parse_json
from moiety.serve import journal, metrics
from moiety.serve.api import answers, bare_app
from moiety.serve.door import Door, read_bytes
from moiety.serve.house import House
from moiety.serve.refusals import RefusalError, bad_request, json_response

_ORDER = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}


def admin_app(house: House) -> ASGIApp:
    """The application of the admin port. All of it needs the admin key."""
    app = bare_app("Moiety, for whoever administers")

    @app.post("/admin/withdraw", responses=answers(), openapi_extra={"requestBody": _ORDER})
    async def withdraw(request: Request) -> Response:
        """Obey an owner's signed order, which is the body."""
        data = await read_bytes(request.receive, orders.ORDER_MAX_BYTES)
        _check_json(data)
        with tempfile.TemporaryDirectory(prefix="moiety-order-") as folder:
            order = Path(folder) / "order.json"
            order.write_bytes(data)
            try:
                return json_response(await house.withdraw(order))
            except TrustError as error:
                raise _refused(403, _why_refused(error), code="order_refused") from None

    @app.post("/admin/reload", responses=answers())
    async def reload() -> Response:
        """Read the policy anew."""
        try:
            remarks = house.reload()
        except ConfigError as error:
            journal.policy_refused(str(error))
            raise bad_request(f"the old policy stays: {error}", code="bad_policy") from None
        keys = [] if house.policy is None else sorted(house.policy.keys)
        journal.policy_read(len(keys), len(remarks))
        return json_response({"keys": keys, "remarks": remarks})

    @app.get("/admin/roster", responses=answers())
    async def roster() -> Response:
        """Who is served, with terms, and the digest in answers."""
        served = house.served
        told = {"name": served.name, "roster": served.digest, "experts": served.describe()}
        return json_response({**told, "ready": house.why_not_ready() is None})

    @app.get("/metrics", responses=answers("text/plain", {"type": "string"}))
    async def scrape() -> Response:
        """For Prometheus."""
        return Response(house.metrics.text(), media_type=metrics.CONTENT_TYPE)

    def uncounted(_key: str, _status: int) -> None:
        return

    return Door(app, house.find_admin, frozenset(), uncounted, local=True)


def _check_json(data: bytes) -> None:
    try:
        parse_json(data, "the body")
    except FormatError as error:
        told = f"the body is {papers.harmless(error.message[:200])}: send an owner's order.json"
        raise _refused(400, told, code="not_json") from None


def _refused(status: int, told: str, *, code: str) -> RefusalError:
    journal.order_refused(told)
    return RefusalError(status, told, code=code)


def _why_refused(error: TrustError) -> str:
    """In words for whoever was sent the order; ``where`` is a file that is gone by now."""
    if isinstance(error, FormatError):
        return f"no order that 'moiety order withdraw' wrote: {error.message}"
    return f"{error.message} ({error.remedy})" if error.remedy else error.message

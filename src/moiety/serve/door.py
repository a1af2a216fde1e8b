"""The door of a server: who may come in, how much may be carried in, and who takes too long.

It stands around a whole application, so a route that somebody adds later is closed too.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moiety.serve.policy import Rights
from moiety.serve.refusals import RefusalError, no_key

BODY_MAX_BYTES = 4 * 2**20
"""The longest context that we know of, as text, is a quarter of it."""

DRAIN_MAX_BYTES = 16 * BODY_MAX_BYTES
"""So much of a body that is too large is read and dropped, so that its sender hears why."""

READ_SECONDS = 30.0

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OWN_SITES = frozenset({"same-origin", "none"})
"""What a browser says of requests by this server's own page, or by a person."""

_HOST = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")
_log = logging.getLogger("moiety.serve")

NOBODY = "-"
Count = Callable[[str, int], None]
Find = Callable[[str, str | None], Rights | None]
"""(path, key sent) to what whoever sent it may have; None: not let in."""


class Door:
    """Lets in who has a key.

    ``open_paths`` are for everybody; ``local``: loopback names only; ``count`` hears whose request
    got which status.
    """

    def __init__(
        self, app: ASGIApp, find: Find, open_paths: frozenset[str], count: Count, *, local: bool
    ) -> None:
        self._app = app
        self._count = count
        self._find = find
        self._open = open_paths
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            return
        try:
            rights = self._let_in(scope)
        except RefusalError as refusal:
            self._count(NOBODY, refusal.status)
            await refusal.response()(scope, receive, send)
            return
        # Not the rights: a new policy may come before the body does.
        scope.setdefault("state", {})["key_hash"] = None if rights is None else rights.hash
        try:
            await self._app(scope, receive, self._counted(rights, send))
        except Exception:
            # It has been answered with a 500; the connection need not end for it.
            _log.exception("a request broke")

    def _counted(self, rights: Rights | None, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and rights is not None:
                self._count(rights.id, message["status"])
            await send(message)

        return counted

    def _let_in(self, scope: Scope) -> Rights | None:
        headers = Headers(scope=scope)
        # A page on the web can make a browser talk to this machine, under the page's own name.
        if self._local and _host(headers.get("host", "")) not in LOOPBACK:
            raise RefusalError(
                403, "this server answers to localhost only", code="host_not_allowed"
            )
        if self._local and headers.get("sec-fetch-site", "none") not in OWN_SITES:
            raise RefusalError(
                403, "this server answers no other site's pages", code="site_not_allowed"
            )
        if scope["path"] in self._open:
            return None
        rights = self._find(scope["path"], _bearer(headers))
        if rights is None:
            raise no_key("no such key: send 'Authorization: Bearer KEY'")
        return rights


def _bearer(headers: Headers) -> str | None:
    sent = headers.getlist("authorization")
    if len(sent) != 1:
        return None
    kind, _, key = sent[0].partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else None


def _host(told: str) -> str:
    """The name in a Host header, without the port; nothing where there is more than both."""
    found = _HOST.fullmatch(told)
    return found[1] or found[2] if found else ""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """A request's body, which says that it is JSON.

    Raises:
        RefusalError: 415 for another kind, 413 for too much, 408 for too slow.
    """
    headers = Headers(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or headers.get("content-encoding", "identity") != "identity":
        raise RefusalError(
            415, "send a JSON body with Content-Type: application/json", code="not_json"
        )
    return await read_bytes(receive, BODY_MAX_BYTES)


async def read_bytes(receive: Receive, most: int) -> bytes:
    """A request's body, of at most so many bytes. What is too large is not kept."""
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(READ_SECONDS):
            while more and size <= DRAIN_MAX_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                size, more = size + len(part), message.get("more_body", False)
                if size <= most:
                    parts.append(part)
                else:
                    parts.clear()
    except TimeoutError:
        raise RefusalError(408, "the body came too slowly", code="too_slow") from None
    if size > most:
        raise RefusalError(413, f"the body is larger than {most:,} bytes", code="body_too_large")
    return b"".join(parts)


class ClientGoneError(Exception):
    """The client has hung up: there is nobody to answer."""


async def while_there(receive: Receive, work: Any) -> Any:
    """What ``work`` returns, if the client waits for it; else the work is cancelled.

    Raises:
        ClientGoneError: the client hung up first.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
        await asyncio.wait({task, watch})
    if task.cancelled():
        raise ClientGoneError
    return task.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

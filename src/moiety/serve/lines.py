"""A connection: kept for whoever is being answered, and not long for whoever lets us wait.

uvicorn waits for ever: for a head, for a body that nobody reads, for a client that does not take
its answer. And it takes as many connections as there are files to open, whatever else needs some.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from moiety.serve.house import STOPPING
from moiety.serve.refusals import RefusalError

WAIT_SECONDS = 30.0
"""So long a client may do nothing where it is its turn: end the head that it began, take a byte."""

LOOK_SECONDS = 1.0
LINGER_SECONDS = 5.0
"""So long a body that nobody wants is read and dropped, after the answer to it."""

LINES_MAX = 1024
"""Connections of one port, if this process may open three times as many files."""

AHEAD_MAX_BYTES = 2**18
"""What may be sent behind a request that is being answered."""

COMPLAIN_SECONDS = 60.0

NO_HTTP = RefusalError(400, "this is no HTTP request", code="not_http")
CLOSE = (b"connection", b"close")


class Line(H11Protocol):
    """One connection. It ends when the client has let it wait for too long."""

    _looking: asyncio.TimerHandle | None = None
    _since = 0.0
    _untaken = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there. Where there are too many, whoever let us wait longest goes."""
        super().connection_made(transport)
        self._application: ASGIApp = cast("ASGIApp", self.app)
        self.app = cast("Any", self._answer)
        self._since = self.loop.time()
        self._look()
        if len(self.connections) > lines_max():
            lines = [one for one in cast("set[Line]", self.connections) if one.waits()]
            min(lines, key=lambda one: one._since).cut()

    def data_received(self, data: bytes) -> None:
        """Bytes came. A head has so long from when it began."""
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._since = self.loop.time()
        super().data_received(data)

    def handle_events(self) -> None:
        """As uvicorn does; but who asks for more before the answer may hang up all the same.

        That is only heard by reading on.
        """
        super().handle_events()
        if self.conn.their_state is h11.DONE and not self.transport.is_closing():
            if len(self.conn.trailing_data[0]) > AHEAD_MAX_BYTES:
                self.cut()
            else:
                self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there."""
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the one form of refusals; behind an answer, without one."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.cut()
            return
        told: Any = NO_HTTP.response()
        headers = [*told.raw_headers, CLOSE]
        head = h11.Response(status_code=NO_HTTP.status, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=told.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def cut(self) -> None:
        """Ends it now, whatever the client has not taken."""
        self.connections.discard(self)
        self.transport.abort()

    def waits(self) -> bool:
        """Whether it is the client's turn: to ask, to take what is there, to hang up."""
        asked = self.cycle is not None and not self.cycle.response_complete
        return not asked or self.flow.write_paused or self.transport.is_closing()

    def _look(self) -> None:
        """Looks again and again whether the client does its part."""
        now, untaken = self.loop.time(), self.transport.get_write_buffer_size()
        if untaken < self._untaken or not self.waits():
            self._since = now
        self._untaken = untaken
        if now - self._since > WAIT_SECONDS:
            self.cut()
        else:
            self._looking = self.loop.call_later(LOOK_SECONDS, self._look)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with what only a line knows: what is unread, and that all ends."""
        cycle = self.cycle
        try:
            await self._application(scope, receive, self._closing(receive, send))
        except asyncio.CancelledError:
            # Only the end of the server cancels. Whoever has heard nothing yet is told.
            if cycle.response_started:
                self.cut()
                await asyncio.sleep(0)
            else:
                await RefusalError(503, STOPPING, code="stopping").response()(scope, receive, send)

    def _closing(self, receive: Receive, send: Send) -> Send:
        """An answer that is given before the body was read is the connection's last.

        The rest of the body is dropped for a moment before we hang up: a client that still sends
        would lose the answer (RFC 9112, 9.6).
        """
        early = False

        async def told(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start":
                early = self.conn.their_state is h11.SEND_BODY
                if early:
                    message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
            elif early and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _drop_body(receive)
                message = {"type": "http.response.body"}
            await send(message)

        return told


async def _drop_body(receive: Receive) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass


def lines_max() -> int:
    """Connections that one port may hold.

    A third of the files that may be open: another third is for the other port, one for the rest.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LINES_MAX if files == resource.RLIM_INFINITY else min(LINES_MAX, files // 3)


def allow_files() -> None:
    """Lets this process open as many files as its lines can need, as far as it may."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * LINES_MAX
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if resource.RLIM_INFINITY != files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def once_a_minute(say: Callable[[str], None]) -> Callable[[asyncio.AbstractEventLoop, Any], None]:
    """What an event loop does with errors: those that come by thousands are told now and then."""
    told = -COMPLAIN_SECONDS

    def hear(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        error = context.get("exception")
        if not (isinstance(error, OSError) and "accept" in context["message"]):
            loop.default_exception_handler(context)
        elif loop.time() - told >= COMPLAIN_SECONDS:
            told = loop.time()
            say(f"connections cannot be taken: {error.strerror}")

    return hear

"""A connection before there is a request on it: a head that never ends, and what is no HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from moiety.serve.refusals import RefusalError

HEAD_SECONDS = 30.0
"""So long a request's head may take, from when the connection or the head began."""

NO_HTTP = RefusalError(400, "this is no HTTP request", code="not_http")


class Line(H11Protocol):
    """One connection. uvicorn waits for a head for ever, and refuses in plain text."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody is there, and has so long to say what for."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Bytes came: of a head, whose time runs on, or beyond one."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch_head()
        else:
            self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there."""
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in the one form of refusals."""
        told: Any = NO_HTTP.response()
        headers = [*told.raw_headers, (b"connection", b"close")]
        head = h11.Response(status_code=NO_HTTP.status, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=told.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

"""From a request that runs to its answer: whole, or as server-sent events.

Whatever goes wrong after the first byte is told as an event with the usual envelope, and the stream
still ends with ``[DONE]``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moiety.serve.asking import Begun
from moiety.serve.choices import Piece
from moiety.serve.door import ClientGoneError, while_there
from moiety.serve.house import House
from moiety.serve.refusals import RefusalError, json_response, to_json

_log = logging.getLogger("moiety.serve")

BROKEN = RefusalError(500, "something broke here; it is not your request", code="internal_error")
DONE = b"data: [DONE]\n\n"
LONG_PIECES = 512
"""An answer of more pieces, which are tokens mostly, is not written in the event loop."""


async def whole(house: House, begun: Begun) -> Response:
    """An answer that is not streamed.

    Raises:
        RefusalError: it ended before its time.
    """
    found: list[list[Piece]] = [[] for _ in begun.run.choices]
    for choice, text in zip(begun.run.choices, begun.echoes, strict=False):
        found[choice.index].append(choice.echo(text))
    async with aclosing(house.runs.pieces(begun.run)) as pieces:
        async for piece in pieces:
            found[piece.index].append(piece)
    write = partial(_written, begun, found)
    return await house.work(write) if sum(map(len, found)) > LONG_PIECES else write()


def _written(begun: Begun, found: Sequence[list[Piece]]) -> Response:
    return json_response(begun.form.whole(found, begun.run.usage, begun.run.extension()))


async def events(house: House, begun: Begun, *, usage: bool) -> AsyncGenerator[bytes]:
    """A streamed answer, event by event, to the very end."""
    try:
        async with aclosing(_chunks(house, begun, usage=usage)) as chunks:
            async for chunk in chunks:
                yield _event(chunk)
    except RefusalError as refusal:
        yield _event(await _billed(house, begun, refusal))
    except Exception:
        _log.exception("a stream broke")
        yield _event(await _billed(house, begun, BROKEN))
    yield DONE


async def _billed(house: House, begun: Begun, refusal: RefusalError) -> dict[str, Any]:
    """What a stream that broke is told; its bill is written first."""
    with suppress(RefusalError):
        await house.runs.finish(begun.run)
    return refusal.body


async def _chunks(house: House, begun: Begun, *, usage: bool) -> AsyncGenerator[dict[str, Any]]:
    """Every chunk. The first of each choice tells who answers, the last of all their shares."""
    run, form = begun.run, begun.form
    head = {"experts": list(run.chosen.names), "roster": run.chosen.digest}
    async with aclosing(house.runs.pieces(begun.run)) as pieces:
        openings = _openings(begun, usage=usage)
        for chunk in openings:
            yield chunk | {"moiety": head}
        headless = set() if openings else {choice.index for choice in run.choices}
        async for piece in pieces:
            if not (piece.text or piece.tokens or piece.finish is not None):
                continue
            last = piece.finish is not None and all(one.finished for one in run.choices)
            told = head if piece.index in headless else None
            headless.discard(piece.index)
            yield form.chunk(piece, usage, run.extension() if last else told)
    if usage:
        yield form.usage_chunk(run.usage, run.extension())


def _openings(begun: Begun, *, usage: bool) -> list[dict[str, Any]]:
    if begun.form.chat:
        return [begun.form.opening(choice.index, usage) for choice in begun.run.choices]
    echoed = zip(begun.run.choices, begun.echoes, strict=False)
    return [begun.form.chunk(choice.echo(text), usage) for choice, text in echoed]


def _event(body: Any) -> bytes:
    return b"data: " + to_json(body) + b"\n\n"


class EventStream(Response):
    """Events until they end or the client hangs up, whichever is sooner."""

    media_type = "text/event-stream"

    def __init__(self, house: House, begun: Begun, *, usage: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._house, self._begun, self._usage = house, begun, usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        try:
            await while_there(receive, self._send(send))
        except ClientGoneError:
            return
        finally:
            # Also when not one event was asked for.
            with suppress(RefusalError):
                await self._house.runs.finish(self._begun.run)

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(events(self._house, self._begun, usage=self._usage)) as found:
            await send(head)
            async for event in found:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

"""Answers as OpenAI's clients take them apart: whole, and in chunks.

Our own object, ``moiety``, tells in every answer which experts were used, under which roster, and
how much of the routing each had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moiety.serve.choices import Piece, Token
from moiety.serve.texts import Texts

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON cannot write."""

FINGERPRINT_CHARS = 16


@dataclass(frozen=True)
class Form:
    """How one request's answer is written. ``logprobs`` is how many alternatives, None for none."""

    texts: Texts
    id: str
    model: str
    created: int
    chat: bool
    logprobs: int | None
    routing: bool
    digest: str

    def whole(self, choices: Sequence[list[Piece]], usage: Any, extension: Any) -> dict[str, Any]:
        """An answer that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        told = [self._choice(_joined(pieces), whole=True) for pieces in choices]
        return {**self._head(kind), "choices": told, "usage": usage, "moiety": extension}

    def chunk(self, piece: Piece, usage_key: bool, extension: Any = None) -> dict[str, Any]:
        """One event of a stream. ``usage_key``: chunks bear a null usage before the last one."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        body = {**self._head(kind), "choices": [self._choice(piece, whole=False)]}
        body |= {"usage": None} if usage_key else {}
        return body | ({"moiety": extension} if extension is not None else {})

    def opening(self, index: int, usage_key: bool) -> dict[str, Any]:
        """A chat's first chunk of a choice, which tells whose turn it is."""
        body = self.chunk(Piece(index), usage_key)
        body["choices"][0]["delta"] = {"role": "assistant", "content": ""}
        return body

    def usage_chunk(self, usage: Any, extension: Any) -> dict[str, Any]:
        """The last chunk, without choices."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": usage, "moiety": extension}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"fp_{self.digest[:FINGERPRINT_CHARS]}",
        }

    def _choice(self, piece: Piece, *, whole: bool) -> dict[str, Any]:
        told: dict[str, Any] = {"index": piece.index, "finish_reason": piece.finish}
        told["logprobs"] = self._logprobs(piece.tokens)
        if not self.chat:
            told["text"] = piece.text
        elif whole:
            told["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
        else:
            told["delta"] = {"content": piece.text} if piece.text or not piece.finish else {}
        if self.routing:
            rows = [list(token.step.weights) for token in piece.tokens if not token.step.prompt]
            told["moiety"] = {"routing": rows}
        return told

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        if self.chat:
            return {"content": [self._chat_token(token) for token in tokens], "refusal": None}
        texts = self.texts
        return {
            "tokens": [texts.token_text(token.step.token) for token in tokens],
            "token_logprobs": [_finite(token.step.logprob) for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens],
            "text_offset": [token.start for token in tokens],
        }

    def _alternatives(self, token: Token) -> dict[str, float]:
        """The likeliest tokens, and the chosen one, which need not be among them."""
        told = {self.texts.token_text(one): _finite(nats) for one, nats in self._top(token)}
        return told | {self.texts.token_text(token.step.token): _finite(token.step.logprob)}

    def _chat_token(self, token: Token) -> dict[str, Any]:
        top = [self._chat_entry(one, nats) for one, nats in self._top(token)]
        return {**self._chat_entry(token.step.token, token.step.logprob), "top_logprobs": top}

    def _chat_entry(self, token: int, nats: float) -> dict[str, Any]:
        held = self.texts.token_bytes(token)
        told = None if held is None else list(held)
        return {"token": self.texts.token_text(token), "logprob": _finite(nats), "bytes": told}

    def _top(self, token: Token) -> Sequence[tuple[int, float]]:
        return token.step.top[: self.logprobs or 0]


def _joined(pieces: list[Piece]) -> Piece:
    return Piece(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        tokens=[token for piece in pieces for token in piece.tokens],
        finish=pieces[-1].finish,
    )


def _finite(nats: float) -> float:
    return nats if math.isfinite(nats) else LEAST_LOGPROB

"""One choice of an answer as its tokens come: text that may be told, and what is told of tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from moiety.serve.jobs import Step
from moiety.serve.texts import Decoding, Stops, Texts


@dataclass(frozen=True)
class Token:
    """A token of an answer; ``start`` is where its text begins in the choice's text."""

    step: Step
    start: int


@dataclass
class Piece:
    """What is new of a choice: text, the tokens it is made of, and (once) why it ended."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None


class Choice:
    """Collects one stream of steps. ``index`` is its number in the answer."""

    def __init__(self, index: int, texts: Texts, stops: Sequence[str], num_slots: int) -> None:
        self.index = index
        self.num_tokens = 0
        self.weights = [0.0] * num_slots
        self.finished = False
        self._prompt = Decoding(texts)
        self._decoding = Decoding(texts)
        self._stops = Stops(stops)
        self._read = 0  # characters that all tokens so far have made
        self._told = 0  # characters of them that were told
        self._pending: deque[Token] = deque()

    def echo(self, text: str) -> Piece:
        """The prompt itself, where it is told back without logprobs."""
        self._read = self._told = len(text)
        return Piece(self.index, text)

    def push(self, step: Step) -> Piece:
        """One more token. ``finish`` is set when a stop was found."""
        if step.prompt:
            return self._push_prompt(step)
        self.num_tokens += 1
        for place, weight in enumerate(step.weights):
            self.weights[place] += weight
        self._pending.append(Token(step, self._read))
        text = self._decoding.push(step.token)
        self._read += len(text)
        piece = self._tell(self._stops.push(text))
        if self._stops.found:
            self.finished, piece.finish = True, "stop"
        return piece

    def end(self, reason: str) -> Piece:
        """The engine is done: what was held back, and the reason."""
        text = self._stops.push(self._decoding.end())
        text += "" if self._stops.found else self._stops.end()
        piece = self._tell(text)
        if not self._stops.found:
            piece.tokens += self._pending
            self._pending.clear()
        self.finished = True
        piece.finish = "stop" if self._stops.found else reason
        return piece

    def _push_prompt(self, step: Step) -> Piece:
        self._pending.append(Token(step, self._read))
        text = self._prompt.push(step.token)
        self._read += len(text)
        return self._tell(text)

    def _tell(self, text: str) -> Piece:
        self._told += len(text)
        piece = Piece(self.index, text)
        while self._pending and self._pending[0].start < self._told:
            piece.tokens.append(self._pending.popleft())
        return piece

"""One step of everything that runs: read, route, compute, choose, hand out.

Legend: N token of the pass, R request that decodes, M question, S slot, T token of the
prompt, D width, V vocabulary.

Knows neither threads nor queues. Routing needs no step of its own: evidence depends on tokens
alone, so a prompt's weights are known when it enters, and a decoded token's are one look-up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from moiety.model import Mixture
from moiety.serve.admission import FAILED
from moiety.serve.answers import Answer
from moiety.serve.board import Board, Feed, Row
from moiety.serve.decoder import Decoder
from moiety.serve.following import begin, go_on
from moiety.serve.jobs import Ending, Job, Step
from moiety.serve.places import Attention, Layout, Piece, Places
from moiety.serve.prefix import BLOCK, PrefixCache
from moiety.serve.sampling import choose, dice, tell

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is wanted to know at one token: what comes next, or how likely a known one was."""

    row: Row
    at: int
    known: int | None


class Stepper:
    """The model, the requests at their places, and the cache of beginnings.

    ``failures`` are the latest steps in a row of which nobody got anything.
    """

    def __init__(
        self, mixture: Mixture, *, places: int, positions: int, step_tokens: int, cache_bytes: int
    ) -> None:
        backbone = mixture.backbone
        self._routing = mixture.routing
        self._device = backbone.device
        self._step_tokens = step_tokens
        self._places = Places(backbone.config, places, positions, backbone.dtype, self._device)
        self._decoder = Decoder(mixture, positions)
        self._prefixes = PrefixCache(cache_bytes // (BLOCK * self._places.position_bytes))
        self.board = Board(self._places)
        self.made = 0
        self.failures = 0

    @property
    def cached(self) -> int:
        """Tokens in the cache of beginnings."""
        return self._prefixes.tokens

    def enter(self, job: Job, answer: Answer) -> None:
        """Gives a job a place, and what is known of its beginning."""
        trail, weights_TS = begin(self._routing, job.prompt, job.slots)
        row = Row(job, answer, list(job.prompt), trail, weights_TS, dice(job), time.monotonic())
        beginning = self._beginning(job)
        self.board.enter(row)
        if beginning is not None:
            row.fed = beginning[0].shape[2]
            self._places.write(row.place, 0, *beginning)

    def leaving(self, wanted: Callable[[Row], bool], ending: Ending) -> None:
        """Ends the running jobs that are wanted, and frees their places."""
        for row in self.board.leaving(wanted):
            row.answer.give([ending])

    @torch.inference_mode()
    def remove(self, slots: Collection[int], ending: Ending) -> None:
        """Forgets experts: weights, tables, keys and values made with them, and who uses them."""
        self.leaving(lambda row: not set(slots).isdisjoint(row.job.slots), ending)
        self._prefixes.forget(slots)
        for slot in slots:
            self._decoder.remove(slot)
            self._routing.table_SV[slot] = 0

    def step(self) -> list[Row]:
        """One step of all that runs; returns who has come to an end."""
        feeds = self.board.feeds(self._step_tokens)
        if not feeds:  # everybody has hung up
            return []
        try:
            outputs = self._outputs(feeds)
        except Exception:
            LOG.exception("a step of %d requests failed", len(feeds))
            outputs = {feed.row: [FAILED] for feed in feeds}
        if outputs:
            lost = all(items == [FAILED] for items in outputs.values())
            self.failures = self.failures + 1 if lost else 0
        ended = [row for row, items in outputs.items() if isinstance(items[-1], Ending)]
        for row in ended:
            self.board.leave(row)
        for row, items in outputs.items():
            row.answer.give(items)
        return ended

    def _outputs(self, feeds: list[Feed]) -> dict[Row, list[Step | Ending]]:
        """Runs the model on the tokens fed; what each request is to be told of it."""
        decoding = self.board.decoding
        weights_NS = self._weights(feeds[:decoding], feeds[decoding:])
        tokens = [token for feed in feeds for token in feed.row.tokens[feed.begin : feed.end]]
        pieces = [Piece(feed.row.place, feed.begin, feed.end) for feed in feeds[decoding:]]
        attention = Attention(self._places, Layout([feed.end for feed in feeds[:decoding]], pieces))
        for feed in feeds:
            # Before it is so: whoever tidies up after a failure must clear what was half written.
            feed.row.fed = feed.end
        tokens_N = torch.tensor(tokens, device=self._device)
        hidden_ND = self._decoder.run(tokens_N, weights_NS, attention)
        outputs = self._answer(_questions(feeds), hidden_ND, weights_NS)
        for feed in feeds[decoding:]:
            row = feed.row
            if not row.unread and outputs.get(row, [None])[-1] is not FAILED:
                self._keep(row)
                self.board.decodes(row)
                if not row.job.max_tokens:
                    outputs.setdefault(row, []).append(Ending("length"))
        for row, items in outputs.items():
            if isinstance(items[-1], Ending) and items[-1] is not FAILED:
                self._keep(row)
        return outputs

    def _weights(self, decoding: list[Feed], reading: list[Feed]) -> Tensor:
        parts = [feed.row.weights_TS[feed.begin : feed.end] for feed in reading]
        if decoding:
            rows = [feed.row for feed in decoding]
            trails = [row.trail for row in rows]
            parts.insert(0, go_on(self._routing, trails, [row.tokens[-1] for row in rows]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _answer(
        self, questions: list[Question], hidden_ND: Tensor, weights_NS: Tensor
    ) -> dict[Row, list[Step | Ending]]:
        outputs: dict[Row, list[Step | Ending]] = {}
        if not questions:
            return outputs
        at_M = torch.tensor([question.at for question in questions], device=self._device)
        logits_MV = self._decoder.logits(hidden_ND[at_M])
        tokens_M = self._tokens(questions, logits_MV)
        told = tell(logits_MV, tokens_M, [question.row.job.top_logprobs for question in questions])
        for question, one, weights in zip(questions, told, weights_NS[at_M].tolist(), strict=True):
            row, items = question.row, outputs.setdefault(question.row, [])
            if items and items[-1] is FAILED:
                continue
            if one is None:
                items.append(FAILED)
                continue
            share = tuple(weights[slot] for slot in row.job.slots)
            known = question.known is not None
            if known or one.token not in row.job.stop_tokens:
                items.append(Step(one.token, one.logprob, one.top, share, known))
            if not known:
                self._grow(row, one.token, items)
        return outputs

    def _tokens(self, questions: list[Question], logits_MV: Tensor) -> Tensor:
        """What each question is about: the token that is known, or else one chosen now."""
        known = [question.known for question in questions]
        if all(token is not None for token in known):
            return torch.tensor(known, device=self._device)
        rows = [question.row for question in questions]
        generators = [row.dice if known[at] is None else None for at, row in enumerate(rows)]
        tokens_M = choose(logits_MV, [row.job for row in rows], generators)
        for at, token in enumerate(known):
            if token is not None:
                tokens_M[at] = token
        return tokens_M

    def _grow(self, row: Row, token: int, items: list[Step | Ending]) -> None:
        if token in row.job.stop_tokens:
            items.append(Ending("stop"))
            return
        row.tokens.append(token)
        self.made += 1
        if row.made == row.job.max_tokens:
            items.append(Ending("length"))

    def _beginning(self, job: Job) -> tuple[Tensor, Tensor] | None:
        """What is cached of a prompt; its last token is always computed, or all where all count."""
        if job.prompt_logprobs:
            return None
        whole = (len(job.prompt) - 1) // BLOCK * BLOCK
        return self._prefixes.find(job.tenant, job.slots, job.prompt[:whole])

    def _keep(self, row: Row) -> None:
        """Caches the whole blocks of what a request has keys and values of."""
        job, end = row.job, row.fed // BLOCK * BLOCK
        begin = self._prefixes.known(job.tenant, job.slots, row.tokens[:end])
        if begin < end:
            fresh = self._places.read(row.place, begin, end)
            self._prefixes.add(job.tenant, job.slots, row.tokens[:end], *fresh)


def _questions(feeds: list[Feed]) -> list[Question]:
    """What is wanted to know at which of the tokens fed."""
    questions, offset = [], 0
    for feed in feeds:
        row, count = feed.row, feed.end - feed.begin
        if row.job.prompt_logprobs and not row.made:
            following = row.tokens[feed.begin + 1 : feed.end + 1]
            questions += [Question(row, offset + n, token) for n, token in enumerate(following)]
        if feed.end == len(row.tokens) and row.job.max_tokens:
            questions.append(Question(row, offset + count - 1, None))
        offset += count
    return questions

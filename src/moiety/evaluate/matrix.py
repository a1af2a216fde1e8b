"""Every text by every set of experts: what each owner brings, and what its leaving costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from moiety.data import DocumentNats, PackedText, Skipped, Sources, load_tokenizer, pack_text
from moiety.errors import ConfigError
from moiety.evaluate.bootstrap import TextScores, measure
from moiety.evaluate.report import Evaluation, ShortTexts, TextFacts
from moiety.evaluate.routing import RoutingWatch, place_names, tokens_taken
from moiety.merge import load_release, open_release
from moiety.model import Mixture

BEGINNINGS = (32, 128)
"""Documents are also judged by so many of their first tokens: how soon does the router know?"""

Watcher = Callable[[str, int, int], None]
"""Is told ``what is being scored``, how many cells are done, and how many there are."""


@dataclass(frozen=True)
class Question:
    """What to evaluate. ``texts`` maps a name to files; a text belongs to the owner of its name."""

    release: Path
    texts: Mapping[str, Sequence[str]]
    max_tokens: int = 32_768
    window_tokens: int = 256
    top_k: int | None = None
    text_field: str = "text"
    skip_bad: bool = False
    device: str = "cpu"
    seed: int = 0


def evaluate(question: Question, *, command: str = "", watch: Watcher | None = None) -> Evaluation:
    """Scores a fair sample of each text's documents with every set of experts.

    The sets: the anchor, the anchor with each expert, all, and all but each.

    Raises:
        ConfigError: numbers that nothing can be scored with.
        DataError: a text that cannot be read. TrustError: a release that does not hold.
    """
    begun = time.monotonic()
    check_tokens(question.max_tokens)
    if question.top_k is not None and question.top_k < 1:
        raise ConfigError(f"{question.top_k} experts a token", where="top_k", remedy="at least 1")
    release = open_release(question.release)
    mixture = load_release(question.release, device=question.device)
    if question.top_k is not None:
        mixture.routing.top_k = question.top_k
    models = model_names(release.names[1:])
    with TemporaryDirectory() as scratch:
        texts = {
            name: pack_documents(
                question.release,
                mixture,
                Sources(paths, text_field=question.text_field, skip_bad=question.skip_bad),
                Path(scratch) / str(number),
                question.window_tokens,
            )
            for number, (name, paths) in enumerate(question.texts.items())
        }
        separator = next(iter(texts.values())).separator
        filled = _fill(mixture, models, texts, question, watch)
    measures = measure(models, filled.scores, seed=question.seed)
    by_place = {name: one.by_place() for name, one in filled.watches.items()}
    reached = max(len(shares["anchor"]) for shares in by_place.values())
    beginnings = tuple(_beginning(models, filled, n, question.seed) for n in BEGINNINGS)
    return Evaluation(
        release=release.digest,
        top_k=mixture.routing.top_k,
        texts=filled.facts,
        models=models,
        bits_per_byte=measures.bits_per_byte,
        bits_per_byte_interval=measures.bits_per_byte_interval,
        gap_closed=measures.gap_closed,
        gap_closed_interval=measures.gap_closed_interval,
        beginnings=beginnings,
        removal=measures.removal,
        removal_interval=measures.removal_interval,
        routing={name: one.shares() for name, one in filled.watches.items()},
        routing_places=place_names()[:reached],
        routing_by_place=by_place,
        used_together={name: one.together() for name, one in filled.watches.items()},
        tokens_taken=tokens_taken(filled.watches, mixture, separator),
        command=command,
        seconds=round(time.monotonic() - begun, 1),
        versions={name: version(name) for name in ("moiety", "torch", "transformers")},
    )


def model_names(owners: Sequence[str]) -> tuple[str, ...]:
    """The sets of experts that are compared; with one or two owners some are the same."""
    names = ["anchor", *(f"anchor+{owner}" for owner in owners), "all"]
    return (*names, *(f"all-{owner}" for owner in owners))


def choose(mixture: Mixture, model: str) -> AbstractContextManager[Any]:
    """The mixture restricted to the experts that a model's name stands for."""
    if model == "all":
        return mixture.without()
    if model.startswith("all-"):
        return mixture.without(model.removeprefix("all-"))
    return mixture.only(*model.split("+")[1:])


def check_tokens(max_tokens: int) -> None:
    """Raises ``ConfigError`` for no tokens at all, which no text is judged by."""
    if max_tokens < 1:
        raise ConfigError(f"{max_tokens} tokens of a text", where="max_tokens", remedy="at least 1")


def pack_documents(
    release: Path, mixture: Mixture, sources: Sources, folder: Path, window_tokens: int
) -> PackedText:
    """Text as a release's tokenizer sees it, no two documents in one window.

    A window is no longer than the model has positions: what lies beyond them it never learned, and
    windows that no document fills cost time and say nothing.
    """
    tokenizer, separator = load_tokenizer(release)
    positions: int = mixture.backbone.config.max_position_embeddings
    return pack_text(
        sources.documents(Skipped()),
        tokenizer,
        folder,
        window_tokens=min(window_tokens, positions),
        separator=separator,
        align=True,
    )


@dataclass(frozen=True)
class _Filled:
    """The scores of every model on every text, and how the whole release routed."""

    scores: dict[str, TextScores]
    beginnings: dict[int, dict[str, TextScores]]
    facts: tuple[TextFacts, ...]
    watches: dict[str, RoutingWatch]


def _fill(
    mixture: Mixture,
    models: Sequence[str],
    texts: Mapping[str, PackedText],
    question: Question,
    watch: Watcher | None,
) -> _Filled:
    everybody = tuple(range(len(mixture.names)))
    scores, facts, watches, done = {}, [], dict[str, RoutingWatch](), 0
    beginnings: dict[int, dict[str, TextScores]] = {length: {} for length in BEGINNINGS}
    for name, text in texts.items():
        rows, seen = [], dict[tuple[int, ...], DocumentNats]()
        for model in models:
            with choose(mixture, model):
                slots = mixture.routing.slots
                if slots not in seen:
                    routing = RoutingWatch(mixture) if slots == everybody else None
                    seen[slots] = _judge(mixture, text, question, routing)
                    watches |= {} if routing is None else {name: routing}
            rows.append(seen[slots])
            done += 1
            if watch is not None:
                watch(f"{name} · {model}", done, len(models) * len(texts))
        found = seen[everybody]
        nats_MD = np.stack([row.nats for row in rows])
        scores[name] = TextScores(nats_MD, found.bytes.astype(np.float64))
        for length, by_text in beginnings.items():
            by_text[name] = _begun(rows, length)
        facts.append(
            TextFacts(
                name=name,
                documents=len(found.documents),
                tokens=found.tokens,
                bytes=int(found.bytes.sum()),
            )
        )
    return _Filled(scores, beginnings, tuple(facts), watches)


def _begun(rows: Sequence[DocumentNats], length: int) -> TextScores:
    """Per token, not per byte: how many bytes a document's first tokens are is not known."""
    tokens_D = rows[0].beginnings[length].tokens
    some_D = tokens_D > 0  # a tokenizer may leave nothing of a text
    nats_MD = np.stack([row.beginnings[length].nats for row in rows])
    return TextScores(nats_MD[:, some_D], tokens_D[some_D].astype(np.float64))


def _beginning(models: Sequence[str], filled: _Filled, length: int, seed: int) -> ShortTexts:
    scores = filled.beginnings[length]
    measures = measure(models, scores, seed=seed)
    return ShortTexts(
        first_tokens=length,
        tokens={name: int(text.document_bytes.sum()) for name, text in scores.items()},
        bits_per_token=measures.bits_per_byte,
        bits_per_token_interval=measures.bits_per_byte_interval,
        gap_closed=measures.gap_closed,
        gap_closed_interval=measures.gap_closed_interval,
    )


def _judge(
    mixture: Mixture, text: PackedText, question: Question, routing: RoutingWatch | None
) -> DocumentNats:
    """One text by the experts in force; ``routing`` is told what they do."""

    def score(windows: Any) -> np.ndarray[Any, Any]:
        if routing is not None:
            routing.expect(windows)
        tokens, documents = torch.from_numpy(windows.tokens), torch.from_numpy(windows.documents)
        return mixture.score(tokens, documents).float().cpu().numpy()

    with nullcontext() if routing is None else mixture.watching(routing.see):
        return text.judge(
            score, max_tokens=question.max_tokens, seed=question.seed, beginnings=BEGINNINGS
        )

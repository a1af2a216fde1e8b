"""Canaries: cycles of words, half of them trained on, so that an audit can see what is remembered.

An auditor who asks a model about all of them can tell knowing from guessing, since a fair coin of
its own decided for each whether it was planted: one run bounds epsilon from below.

Source: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run",
arXiv 2305.08846; canaries as texts drawn by lot are Carlini et al. 2019, "The Secret Sharer".
"""

from __future__ import annotations

import re
import secrets
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from tokenizers import Tokenizer

from moiety.bundle import papers
from moiety.data import load_tokenizer
from moiety.errors import ConfigError
from moiety.files import PAPER_MAX_BYTES, digest_bytes, write_atomic
from moiety.train.config import TrainConfig

CANARIES_PAPER = "canaries.json"

LEAST_WORDS = 256
"""Words that a vocabulary must have for canaries to be made of them."""

WORDS = 64
"""Words that all canaries share: each is then in enough of them to be counted as the owner's."""

CYCLE = 3
"""A canary says three words over and over: which word follows which is what can be remembered."""

_WORDS = 2
_WHOLE_WORD = re.compile("[\u0120\u2581]([A-Za-z]{3,})")
"""How byte-level and SentencePiece vocabularies write a word behind a space."""


def open_canaries(
    folder: Path, anchor: Path, anchor_digest: str, owner: str, config: TrainConfig
) -> papers.Canaries | None:
    """The canaries of a run's folder; new ones where it has none yet, None where none are asked.

    Raises:
        ConfigError: more text than a paper may hold.
        FormatError: the folder's paper is damaged.
    """
    if config.data.canaries == 0:
        return None
    path = folder / CANARIES_PAPER
    if not path.exists():
        paper = make_canaries(load_tokenizer(anchor)[0], anchor_digest, owner, config)
        data = papers.paper_bytes(paper)
        if len(data) > PAPER_MAX_BYTES:
            raise ConfigError(
                f"{len(data):,} bytes of canaries, where a paper holds {PAPER_MAX_BYTES:,}",
                where="data.canaries",
                remedy="ask for fewer, or for a smaller data.canary_tokens",
            )
        write_atomic(path, data, private=True)
    return papers.read_paper(papers.Canaries, path)


def make_canaries(
    tokenizer: Tokenizer, anchor_digest: str, owner: str, config: TrainConfig
) -> papers.Canaries:
    """Draws texts from the owner's name and the run's seed, and throws coins.

    The name is in it because two owners of one seed would otherwise plant the same texts, and one
    would be found to know what the other has learned. Coins come from the system's own randomness,
    never from the seed, which a stranger may guess: who knows how they fell has a few hundred
    records of which he knows whether they were trained on, and can tune his attack on all others.
    """
    count, length = config.data.canaries, config.data.canary_tokens
    name = int(digest_bytes(owner.encode())[:16], 16)
    draws = np.random.default_rng([config.seed, _WORDS, name])
    words = rare_words(tokenizer)
    texts: dict[frozenset[int], str] = {}  # in order, no two of the same words
    while len(texts) < count:
        cycle = draws.permutation(len(words))[:CYCLE].tolist()
        text = " ".join(words[cycle[at % CYCLE]] for at in range(length))
        texts.setdefault(frozenset(cycle), text)
    planted = [secrets.randbits(1) == 1 for _ in range(count)]
    return papers.Canaries(
        owner=owner, anchor=anchor_digest, texts=tuple(texts.values()), planted=tuple(planted)
    )


def rare_words(tokenizer: Tokenizer) -> list[str]:
    """What canaries are made of: the ``WORDS`` whole words that the vocabulary learned last.

    Few words, so that an owner's table of evidence counts them as the owner's: what the routing
    leaves to the anchor teaches an expert nothing. A small vocabulary has none to spare. Then they
    are words of three letters, of several tokens each.
    """
    numbered = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    words = [match[1] for _, token in numbered if (match := _WHOLE_WORD.fullmatch(token))]
    found = list(dict.fromkeys(reversed(words)))
    if len(found) < LEAST_WORDS:
        every = ["".join(letters) for letters in product(ascii_lowercase, repeat=3)]
        return every[:: len(every) // WORDS][:WORDS]
    return found[:WORDS]


def planted_records(paper: papers.Canaries | None) -> tuple[tuple[str, str], ...]:
    """What is trained on beside the owner's text: (record, text), ``CANARY_COPIES`` times each.

    The text's own digest is in the name: no record of the owner's can bear it by accident.
    """
    if paper is None:
        return ()
    once = [
        (f"canary-{number:06d}-{digest_bytes(text.encode())}", text)
        for number, (text, planted) in enumerate(zip(paper.texts, paper.planted, strict=True))
        if planted
    ]
    return tuple(once * papers.CANARY_COPIES)

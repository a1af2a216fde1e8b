"""A small classifier of documents: which of two kinds of text does one look like?

Logistic regression on tokens and pairs of neighbours that occur in the document, hashed to a
fixed number of features. It runs no model and takes seconds. Nobody is judged by a classifier that
was trained on it: records are dealt into two folds, and each fold is judged by what was learned
from the other.

Legend: D document, N feature of a document (all documents in one row), V hashed feature.

Source: hashing, Weinberger et al. 2009 (Feature Hashing for Large Scale Multitask Learning);
cross-fitting, Hastie, Tibshirani, Friedman (The Elements of Statistical Learning), 7.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moiety.errors import DataError
from moiety.files import digest_bytes

_FEATURE_BITS = 18
TEXT_CHARS = 20_000
"""Only so much of a document is read: what it is about shows soon."""

_SPREAD = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: products with it spread over all bits (Knuth, 6.4)."""

_DECAY = 2e-4
_ITERATIONS = 60

Numbers = np.ndarray[Any, np.dtype[np.uint64]]
Tokenize = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Text:
    """A document, and whose record it is part of."""

    text: str
    record: str


@dataclass(frozen=True)
class Verdict:
    """What a classifier says of documents that it was not trained on.

    ``public_D`` are log-odds of each public document: above zero it looks like own text.
    ``accuracy`` is the mean of the shares judged rightly of own and of public text.
    """

    public_D: Tensor
    accuracy: float


def classify(own: Sequence[Text], public: Sequence[Text], tokenize: Tokenize) -> Verdict:
    """Tells own text from public text.

    Raises:
        DataError: too few records to judge on others than were learned from.
    """
    texts = [*own, *public]
    bags = _Bags.of([text.text[:TEXT_CHARS] for text in texts], tokenize)
    own_D = torch.arange(len(texts)) < len(own)
    fold_D = torch.tensor([_fold(text.record) for text in texts])
    logits_D = torch.zeros(len(texts), dtype=torch.double)
    for fold in (0, 1):
        rest_D = fold_D != fold
        for kind, kind_D in (("own", own_D), ("public", ~own_D)):
            if not (kind_D & rest_D).any():
                raise DataError(
                    f"the {kind} text is too few records to tell what it is like",
                    remedy="give more documents, of several records",
                )
        logits_D = torch.where(rest_D, logits_D, _fit(bags, own_D, rest_D))
    right_D = (logits_D > 0) == own_D
    accuracy = (right_D[own_D].double().mean() + right_D[~own_D].double().mean()) / 2
    return Verdict(logits_D[~own_D], float(accuracy))


def _fold(record: str) -> int:
    return int(digest_bytes(record.encode("utf-8"))[:8], 16) % 2


@dataclass(frozen=True)
class _Bags:
    """Documents as the features that occur in them; a document's values have length one."""

    documents_N: Tensor
    features_N: Tensor
    values_N: Tensor

    @classmethod
    def of(cls, texts: Sequence[str], tokenize: Tokenize) -> _Bags:
        features = [hashed(ids) for ids in tokenize(texts)]
        counts_D = torch.tensor([len(part) for part in features])
        documents_N = torch.repeat_interleave(torch.arange(len(texts)), counts_D)
        features_N = torch.from_numpy(np.concatenate(features).astype(np.int64))
        return cls(documents_N, features_N, counts_D[documents_N].double().rsqrt())

    def scores(self, weights_V: Tensor, count: int) -> Tensor:
        parts_N = self.values_N * weights_V.index_select(0, self.features_N)
        return torch.zeros(count, dtype=parts_N.dtype).index_add(0, self.documents_N, parts_N)


def hashed(ids: Sequence[int]) -> Numbers:
    """The features of a document: its tokens and its pairs of neighbours, each once, sorted."""
    ids_T = np.array(ids, dtype=np.uint64)
    with np.errstate(over="ignore"):
        pairs_T = (ids_T[:-1] + np.uint64(1)) * np.uint64(_SPREAD) + ids_T[1:]
        spread = np.concatenate([ids_T, pairs_T]) * np.uint64(_SPREAD)
    return np.unique(spread >> np.uint64(64 - _FEATURE_BITS))


def _fit(bags: _Bags, own_D: Tensor, learn_D: Tensor) -> Tensor:
    """Log-odds of every document, learned from those chosen by ``learn_D``; own and public weigh
    half each."""
    weight_D = torch.zeros(len(own_D), dtype=torch.double)
    for kind_D in (own_D & learn_D, ~own_D & learn_D):
        weight_D[kind_D] = 0.5 / int(kind_D.sum())
    weights_V = torch.zeros(2**_FEATURE_BITS, dtype=torch.double, requires_grad=True)
    bias = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights_V, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_D = bags.scores(weights_V, len(own_D)) + bias
        value = functional.binary_cross_entropy_with_logits(
            logits_D, own_D.double(), weight_D, reduction="sum"
        )
        value = value + _DECAY / 2 * weights_V.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return bags.scores(weights_V, len(own_D)) + bias

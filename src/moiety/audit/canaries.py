"""What planted canaries show under one view: exposure, and the lower bound on epsilon.

Legend: M canary, N token, P planted, L left out, S sample of the bootstrap.

A canary is a text that nobody could know. A coin decided whether it went into the training text, so
those left out are the measure for those planted: both were made in the same way, and a model that
remembers nothing cannot tell them apart. Canaries share their words, so only the order is what can
be remembered of one: a text counts by its nats minus those of its words in reverse. A canary's
score is what the view gains in that over the anchor: what makes some canaries easier for any model
is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from moiety.audit.bounds import Flags, Floats, best_bound
from moiety.audit.intervals import draws
from moiety.audit.membership import token_scores
from moiety.audit.views import Watched
from moiety.bundle import audits
from moiety.data import tokenizer
from moiety.errors import DataError

_BATCH_TEXTS: Final = 16
_SAMPLES: Final = 2000
_TAIL: Final = 0.025
_BLOCK_NUMBERS: Final = 4_000_000


def order_nats(
    view: Watched, texts: Sequence[str], encoder: tokenizer.PlainEncoder, separator: int
) -> Floats:
    """What each text costs a view above its words in reverse, in nats, [M].

    A view that knows the words alone has 0 on average, one that knows their order far less. Sums
    over tokens; each text stands by itself, behind a separator.
    """
    back = [" ".join(reversed(text.split(" "))) for text in texts]
    documents = [tokenizer.Document(text, record="", where="canaries") for text in (*texts, *back)]
    encoded = [ids.astype(np.int64) for ids in encoder.encode(documents)]
    sums = [
        -float(logs_N.sum())
        for at in range(0, len(encoded), _BATCH_TEXTS)
        for logs_N, _ in token_scores(view, encoded[at : at + _BATCH_TEXTS], separator)
    ]
    forth_M, back_M = np.split(np.array(sums), 2)
    nats_M: Floats = forth_M - back_M
    return nats_M


def canary_finding(
    view_nats: Floats, anchor_nats: Floats, planted: Flags, *, delta: float, seed: int
) -> audits.CanaryFinding:
    """Exposure and bound from the nats of all canaries, planted or not, all of shape [M].

    Nats are those of ``order_nats``. The bound holds at ``delta``; to hold a promise
    against it, give the promise's own. ``seed`` is the bootstrap's.

    Raises:
        DataError: arrays of different lengths, a number that is not finite, or all canaries planted
            or all left out, so that there is nothing to compare.
    """
    if not view_nats.shape == anchor_nats.shape == planted.shape:
        shapes = f"{view_nats.shape}, {anchor_nats.shape} and {planted.shape}"
        raise DataError(f"canaries of shapes {shapes}")
    if not planted.any() or planted.all():
        raise DataError(
            "canaries need some that were planted and some that were left out",
            remedy="plant more of them: a coin decides about each",
        )
    scores_M = anchor_nats - view_nats
    bound = best_bound(scores_M, planted, delta)
    exposure_P = exposures(scores_M, planted)
    return audits.CanaryFinding(
        planted=int(planted.sum()),
        left_out=int((~planted).sum()),
        exposure=_mean_exposure(scores_M, planted, seed),
        most_exposed=float(exposure_P.max()),
        guesses=bound.guesses,
        right=bound.right,
        delta=delta,
        epsilon_low=bound.epsilon_low,
    )


def exposures(scores: Floats, planted: Flags) -> Floats:
    """Each planted canary's exposure in bits, [P]: how far it stands out of those left out.

    ``log2(L + 1) - log2(rank)``, the rank being one more than the number of left-out canaries that
    score at least as high. By chance alone the mean is 1.44 bits or a little less (log2 of e),
    because chance puts every second canary into the upper half. Nothing can be above
    ``log2(L + 1)``: with 31 left out, a canary that is known by heart shows 5 bits, though it may
    have thirty. Extrapolating beyond would take a distribution that nobody has checked.

    Source: Carlini et al. 2019, The Secret Sharer, section 4, with a sample as the space.
    """
    left_L, planted_P = scores[~planted], scores[planted]
    ranks_P = 1 + (left_L[:, None] >= planted_P).sum(axis=0)
    bits_P: Floats = np.log2(left_L.size + 1) - np.log2(ranks_P)
    return bits_P


def _mean_exposure(scores_M: Floats, planted_M: Flags, seed: int) -> audits.Estimate:
    """The mean and its percentile interval; planted and left out are both drawn again.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    generator = np.random.default_rng(seed)
    left_L, planted_P = scores_M[~planted_M], scores_M[planted_M]
    above_LP = (left_L[:, None] >= planted_P).astype(np.float64)
    block = max(1, _BLOCK_NUMBERS // scores_M.size)
    means = []
    for start in range(0, _SAMPLES, block):
        size = min(block, _SAMPLES - start)
        ranks_SP = 1 + draws(generator, left_L.size, size) @ above_LP
        bits_SP = np.log2(left_L.size + 1) - np.log2(ranks_SP)
        counts_SP = draws(generator, planted_P.size, size)
        means.append((counts_SP * bits_SP).mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [_TAIL, 1 - _TAIL])
    value = float(exposures(scores_M, planted_M).mean())
    return audits.Estimate(value=value, low=float(low), high=float(high))

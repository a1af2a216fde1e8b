"""From guesses to a number: how small epsilon cannot be, after one training run.

Legend: M canary, from the lowest score to the highest.

A fair coin decides of each of ``M`` canaries whether it is trained on. Afterwards somebody who does
not know the coins looks at the model, and says of as many canaries as he likes how their coins
fell. If the training keeps (epsilon, 0) for one canary more or less, then whatever the model shows,
the odds of each coin are at most e^epsilon to one, whatever the others are. So of ``r`` guesses no
more are right than of ``r`` throws of a coin that falls right with probability
e^epsilon / (1 + e^epsilon). If more are than such a coin is likely to give, epsilon is larger.

Delta is the probability that something tells more than that. It may happen with each of the M
canaries, guessed or not, and the bound pays for the worst way to spend it.

Source: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run
(arXiv 2305.08846), theorem 5.2 and appendix D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moiety.errors import DataError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_PARTS_OF_BOTH_ENDS: Final = (1, 2, 4, 8, 16)
_PARTS_OF_THE_TOP: Final = (4, 8, 16)
_PRECISION: Final = 1e-4


@dataclass(frozen=True)
class Bound:
    """The largest epsilon that is refuted, and by how many right guesses of how many."""

    epsilon_low: float
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely at most so many right guesses are under any (epsilon, delta) mechanism.

    Returns:
        P[X >= right] + 2 canaries delta alpha, at most 1; X is binomial of ``guesses`` throws, and
        alpha the largest of P[right - i <= X < right] / i over i = 1, 2, ...

    Source: theorem 5.2. The factor is all canaries, not the guesses.
    """
    counts = np.arange(1, guesses + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts))])
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_right = -np.log1p(np.exp(-epsilon))
    log_wrong = log_right - epsilon
    hits = np.arange(guesses + 1)
    probability = np.exp(log_choose + hits * log_right + (guesses - hits) * log_wrong)
    below = np.cumsum(probability[:right][::-1])
    alpha = float((below / counts[:right]).max(initial=0.0))
    return min(1.0, float(probability[right:].sum()) + 2 * canaries * delta * alpha)


def epsilon_low(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon refuted with this confidence, 0 where none is.

    Raises:
        DataError: more guesses than canaries, more right than guessed, or no probability.
    """
    if not 0 <= right <= guesses <= canaries:
        raise DataError(f"{right} right of {guesses} guesses about {canaries} canaries")
    if not (0 <= delta <= 1 and 0 < confidence < 1):
        raise DataError(f"delta {delta} or confidence {confidence} is no probability")

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def best_bound(scores: Floats, planted: Flags, delta: float, confidence: float = 0.95) -> Bound:
    """The best of a few ways to guess from ``scores`` [M], higher where planted is likelier.

    A way guesses that the highest scores are planted and as many of the lowest are not, or only the
    former, and abstains on the rest; one splits all of them at the widest gap. Few guesses pay
    where few canaries give themselves away; only the highest where some are remembered and the
    others look like those left out; the gap where all are remembered. Which ways there are is fixed
    beforehand. Each is given its share of the error that is allowed: the chance that any of them is
    wrong is at most the sum of their chances, so the best of them may be told.

    Of equal scores the wrong guess is taken first. So their order, which may know the coins, helps
    nobody.

    Trap: true only if each coin was thrown by itself, and no score has seen the coins.

    Raises:
        DataError: no canary, not as many flags as scores, or a score that is no finite number.
    """
    if scores.ndim != 1 or scores.shape != planted.shape or not scores.size:
        raise DataError(f"scores of shape {scores.shape} for {planted.shape} canaries")
    if not np.isfinite(scores).all():
        raise DataError("a canary's score is not a finite number")
    order_M = np.lexsort((~planted, scores))
    planted_M = planted[order_M]
    tries = [_guess(planted_M, low, high) for low, high in _ways(scores[order_M])]
    return _best(tries, scores.size, delta, confidence)


def ceiling(canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The bound if every guess is right: more than this so few canaries cannot show."""
    tries = [(low + high, low + high) for low, high in _ways(np.arange(canaries))]
    return _best(tries, canaries, delta, confidence).epsilon_low


def _ways(scores_M: NDArray[np.number]) -> list[tuple[int, int]]:
    """How many of the lowest and how many of the highest are guessed, from sorted scores."""
    canaries = scores_M.size
    halves = [canaries // (2 * part) for part in _PARTS_OF_BOTH_ENDS]
    tops = [canaries // part for part in _PARTS_OF_THE_TOP]
    split = _widest_gap(scores_M)
    return [
        (split, canaries - split),
        *((half, half) for half in halves),
        *((0, top) for top in tops),
    ]


def _widest_gap(scores_M: NDArray[np.number]) -> int:
    """How many scores lie under the widest gap, of those gaps that leave a quarter on each side."""
    aside = scores_M.size // 4
    gaps_M = np.diff(scores_M, prepend=scores_M[:1])
    return aside + int(gaps_M[aside : scores_M.size - aside].argmax())


def _guess(planted_M: Flags, low: int, high: int) -> tuple[int, int]:
    """Guesses and right ones."""
    right = np.count_nonzero(~planted_M[:low]) + np.count_nonzero(
        planted_M[planted_M.size - high :]
    )
    return low + high, int(right)


def _best(tries: list[tuple[int, int]], canaries: int, delta: float, confidence: float) -> Bound:
    share = (1 - confidence) / len(tries)
    best = Bound(0.0, *tries[0])
    for guesses, right in tries:
        # A way that does not refute what another has refuted need not be searched.
        if p_value(canaries, guesses, right, best.epsilon_low, delta) < share:
            found = epsilon_low(canaries, guesses, right, delta, 1 - share)
            best = max(best, Bound(found, guesses, right), key=lambda bound: bound.epsilon_low)
    return best

"""From logits to tokens: greedy, temperature, top-p, and what is told about a choice.

Legend: M row, V vocabulary.

A row's choice depends on its own logits and its own generator alone. One number is drawn a token
and looked up in the cumulative probabilities in the order of the ids: in the order of likelihood,
two tokens as likely as each other would change places with the last bit of a logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moiety.serve.jobs import Job

SEEDS = 2**63
"""Seeds beyond are taken as the remainder: a caller's number may be any."""


@dataclass(frozen=True)
class Told:
    """A token with its logprob, and the likeliest ones with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def dice(job: Job) -> torch.Generator | None:
    """The generator of a job that samples."""
    if job.temperature == 0:
        return None
    generator = torch.Generator()
    if job.seed is None:
        generator.seed()
    else:
        generator.manual_seed(job.seed % SEEDS)
    return generator


def choose(
    logits_MV: Tensor, jobs: Sequence[Job], generators: Sequence[torch.Generator | None]
) -> Tensor:
    """The next token of every row, ``[M]``."""
    chosen_M = logits_MV.argmax(dim=-1)
    rows = [row for row, generator in enumerate(generators) if generator is not None]
    if rows:
        draws = [torch.rand((), generator=g, dtype=torch.double) for g in generators if g]
        draw_M = torch.stack(draws).to(logits_MV.device)
        chosen_M[rows] = _drawn(logits_MV[rows], [jobs[row] for row in rows], draw_M)
    return chosen_M


def tell(logits_MV: Tensor, tokens_M: Tensor, tops: Sequence[int]) -> list[Told | None]:
    """Logprobs of the tokens chosen and of the likeliest; None where logits are not numbers.

    ``tops`` is how many alternatives each row tells.
    """
    norm_M = logits_MV.logsumexp(dim=-1)
    logprobs = (logits_MV.gather(1, tokens_M[:, None])[:, 0] - norm_M).tolist()
    most = max(tops, default=0)
    best_ids: list[list[int]] = [[]] * len(tops)
    best_logprobs: list[list[float]] = [[]] * len(tops)
    if most:
        best = logits_MV.topk(min(most, logits_MV.shape[1]), dim=-1)
        best_ids, best_logprobs = best.indices.tolist(), (best.values - norm_M[:, None]).tolist()
    sound = norm_M.isfinite().tolist()
    told: list[Told | None] = []
    for row, token in enumerate(tokens_M.tolist()):
        pairs = zip(best_ids[row][: tops[row]], best_logprobs[row], strict=False)
        told.append(Told(token, logprobs[row], tuple(pairs)) if sound[row] else None)
    return told


def _drawn(logits_MV: Tensor, jobs: list[Job], draw_M: Tensor) -> Tensor:
    temperature_M = draw_M.new_tensor([job.temperature for job in jobs])
    # The largest becomes zero first: a tiny temperature would make infinities of the others.
    logits_MV = logits_MV.double()
    logits_MV = logits_MV - logits_MV.max(dim=-1, keepdim=True).values
    probs_MV = (logits_MV / temperature_M[:, None]).softmax(dim=-1)
    if any(job.top_p < 1 for job in jobs):
        probs_MV = _nucleus(probs_MV, draw_M.new_tensor([job.top_p for job in jobs]))
    sums_MV = probs_MV.cumsum(dim=-1)
    found_M1 = torch.searchsorted(sums_MV, draw_M[:, None] * sums_MV[:, -1:], right=True)
    return found_M1[:, 0].clamp(max=logits_MV.shape[1] - 1)


def _nucleus(probs_MV: Tensor, top_p_M: Tensor) -> Tensor:
    """Keeps the likeliest tokens until they hold ``top_p``; the likeliest always."""
    ranked = probs_MV.sort(dim=-1, descending=True)
    before_MV = ranked.values.cumsum(dim=-1) - ranked.values
    dropped_MV = before_MV >= top_p_M[:, None]
    dropped_MV[:, 0] = False
    return probs_MV.masked_fill(dropped_MV.scatter(1, ranked.indices, dropped_MV), 0.0)

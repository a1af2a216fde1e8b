"""Membership inference: can it be told from a model what it was trained on?

Legend: B document of a batch, T position, N token or document, V vocabulary, M member, O outsider.

An attack is a number a document; the higher, the more it looks like one that was trained on. It is
as good as it ranks members above outsiders, which are documents like them that were not trained on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moiety.audit.intervals import Floats, clopper_pearson, pairs_interval
from moiety.audit.records import Passage
from moiety.audit.views import Watched
from moiety.bundle import audits
from moiety.errors import ConfigError
from moiety.model import Borders, Mixture

LEAST_LIKELY: Final = 0.2
"""The share of tokens that Min-K% and Min-K%++ look at."""

CURVE_POINTS: Final = 256

_BATCH_DOCUMENTS: Final = 16
_CHUNK_TOKENS: Final = 256
"""Distributions over the vocabulary that exist at once."""
_SIGMA_MIN: Final = 1e-4
"""A model that is sure of one token has no spread to speak of."""

Progress = Callable[[int, int], None]
"""Is told how many documents are done, and how many there are."""


@dataclass(frozen=True)
class PassageScores:
    """What a view makes of each passage, ``[N]``: the higher, the more it looks like a member.

    ``loss``: minus the mean nats a token. ``zlib``: minus the nats a byte that zlib needs for the
    text (Carlini et al. 2021). ``min_k``: the mean log-probability of the least likely fifth of the
    tokens (Shi et al. 2024, Detecting pretraining data). ``min_k_plus``: the same of
    log-probabilities standardised under the model's own prediction (Zhang et al. 2024, Min-K%++).
    """

    loss: Floats
    zlib: Floats
    min_k: Floats
    min_k_plus: Floats


@dataclass(frozen=True)
class MembershipScores:
    """One view's scores of members and of outsiders."""

    members: PassageScores
    outsiders: PassageScores


def score_passages(
    view: Watched,
    passages: Sequence[Passage],
    separator: int,
    progress: Progress | None = None,
) -> PassageScores:
    """Scores each passage by itself, behind a separator.

    Raises:
        ConfigError: no passage, or one that is longer than the model has positions.
    """
    positions: int = view.mixture.backbone.config.max_position_embeddings
    longest = max((passage.tokens.size for passage in passages), default=0)
    if not 0 < longest <= positions:
        raise ConfigError(f"passages of up to {longest} tokens for {positions} positions")
    rows: list[tuple[float, float, float, float]] = []
    for at in range(0, len(passages), _BATCH_DOCUMENTS):
        batch = passages[at : at + _BATCH_DOCUMENTS]
        tokens = [passage.tokens for passage in batch]
        for passage, (logs_N, standard_N) in zip(
            batch, token_scores(view, tokens, separator), strict=True
        ):
            packed = len(zlib.compress(passage.text))
            sums = (float(logs_N.mean()), float(logs_N.sum()) / packed)
            rows.append((*sums, _least(logs_N), _least(standard_N)))
        if progress is not None:
            progress(len(rows), len(passages))
    return PassageScores(*np.array(rows, dtype=np.float64).T)


def token_scores(
    view: Watched, documents: Sequence[NDArray[np.int64]], separator: int
) -> Iterator[tuple[Floats, Floats]]:
    """Of each token of each document, ``[T]`` of them: its log-probability, and that standardised.

    Standardised: minus the mean and over the standard deviation of the log-probability of a token
    that the model itself would draw there.
    """
    inputs_BT, targets_BT, documents_BT = _windows(documents, separator)
    device = view.mixture.backbone.device
    borders = Borders.from_documents(documents_BT.to(device))
    with view.using() as mixture, mixture.routing.documents(borders):
        logs_BT, standard_BT = _standardised(mixture, inputs_BT.to(device), targets_BT.to(device))
    for row, document in enumerate(documents):
        pair = (logs_BT[row, : document.size], standard_BT[row, : document.size])
        logs_N, standard_N = (values.double().cpu().numpy() for values in pair)
        yield logs_N, standard_N


def membership_of(
    view: MembershipScores, anchor: MembershipScores | None, seed: int = 0
) -> dict[audits.Attack, audits.Membership]:
    """A view's findings for the report; ``anchor`` is what the anchor made of the same passages.

    None for the anchor itself: it has no excess, and there is no ratio of it to itself. The ratio
    cannot tell anything from the anchor alone, so its excess is over one half.
    """
    anchor_kernels = {} if anchor is None else _kernels(attack_scores(anchor, None))
    scores = attack_scores(view, anchor)
    found: dict[audits.Attack, audits.Membership] = {}
    for attack, kernel_MO in _kernels(scores).items():
        members, outsiders = scores[attack]
        excess = None
        if anchor is not None:
            excess = pairs_interval(kernel_MO - anchor_kernels.get(attack, np.float32(0.5)), seed)
        found[attack] = audits.Membership(
            auc=pairs_interval(kernel_MO, seed),
            excess=excess,
            hits={
                "0.001": hits_at(members, outsiders, 1000),
                "0.01": hits_at(members, outsiders, 100),
            },
            curve=roc_curve(members, outsiders),
        )
    return found


def attack_scores(
    view: MembershipScores, anchor: MembershipScores | None
) -> dict[audits.Attack, tuple[Floats, Floats]]:
    """Each attack's scores of members ``[M]`` and of outsiders ``[O]``."""
    groups = (view.members, view.outsiders)
    found: dict[audits.Attack, tuple[Floats, Floats]] = {
        "loss": (groups[0].loss, groups[1].loss),
        "zlib": (groups[0].zlib, groups[1].zlib),
        "min-k": (groups[0].min_k, groups[1].min_k),
        "min-k++": (groups[0].min_k_plus, groups[1].min_k_plus),
    }
    if anchor is not None:
        found["ratio"] = (
            view.members.loss - anchor.members.loss,
            view.outsiders.loss - anchor.outsiders.loss,
        )
    return found


def hits_at(members: Floats, outsiders: Floats, one_in: int) -> audits.Estimate | None:
    """True positives while at most one outsider in ``one_in`` is taken for a member.

    The interval takes the border, which outsiders set, as given. None with fewer outsiders: they
    cannot show such a rate.
    """
    allowed = outsiders.size // one_in
    if allowed == 0:
        return None
    border = np.sort(outsiders)[-allowed - 1] if allowed < outsiders.size else -np.inf
    return clopper_pearson(int((members > border).sum()), members.size)


def roc_curve(members: Floats, outsiders: Floats) -> tuple[tuple[float, float], ...]:
    """(false, true) positives as the border falls, from (0, 0) to (1, 1), of few points."""
    borders = np.unique(np.concatenate([members, outsiders]))[::-1]
    caught = (
        np.searchsorted(np.sort(-group), -borders, side="right") / group.size
        for group in (outsiders, members)
    )
    points = np.concatenate([[[0.0, 0.0]], np.stack(list(caught), axis=1)])
    some = np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))
    return tuple((float(false), float(true)) for false, true in points[some])


def _kernels(
    scores: dict[audits.Attack, tuple[Floats, Floats]],
) -> dict[audits.Attack, NDArray[np.float32]]:
    """Of each pair whether the member is ranked above the outsider (a tie is half), ``[M, O]``.

    The mean is the AUC (Mann and Whitney 1947).
    """
    return {
        attack: np.float32(0.5)
        * (1 + np.sign(members[:, None] - outsiders[None])).astype(np.float32)
        for attack, (members, outsiders) in scores.items()
    }


def _least(values_N: Floats) -> float:
    """The mean of the lowest fifth, at least of one."""
    count = max(1, int(LEAST_LIKELY * values_N.size))
    return float(np.partition(values_N, count - 1)[:count].mean())


def _windows(
    documents: Sequence[NDArray[np.int64]], separator: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and documents, int64 ``[B, T]``: a document each, -1 where it has ended."""
    longest = max(document.size for document in documents)
    inputs_BT, targets_BT = np.full((2, len(documents), longest), separator, dtype=np.int64)
    documents_BT = np.full((len(documents), longest), -1, dtype=np.int64)
    for row, document in enumerate(documents):
        inputs_BT[row, 1 : document.size] = document[:-1]
        targets_BT[row, : document.size] = document
        documents_BT[row, : document.size] = row
    arrays = (inputs_BT, targets_BT, documents_BT)
    inputs, targets, numbers = (torch.from_numpy(array) for array in arrays)
    return inputs, targets, numbers


def _standardised(mixture: Mixture, inputs_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets, plain and standardised, ``[B, T]`` each."""
    parts = []
    with torch.inference_mode():
        output: Any = mixture.backbone.model(input_ids=inputs_BT, use_cache=False)
        hidden_ND = output.last_hidden_state.flatten(0, 1)
        targets_N1 = targets_BT.reshape(-1, 1)
        for at in range(0, len(hidden_ND), _CHUNK_TOKENS):
            logits_NV = mixture.backbone.lm_head(hidden_ND[at : at + _CHUNK_TOKENS]).float()
            logs_NV = logits_NV.log_softmax(dim=-1)
            probs_NV = logs_NV.exp()
            mean_N1 = (probs_NV * logs_NV).sum(dim=-1, keepdim=True)
            spread_N1 = (probs_NV * (logs_NV - mean_N1) ** 2).sum(dim=-1, keepdim=True).sqrt()
            log_N1 = logs_NV.gather(1, targets_N1[at : at + _CHUNK_TOKENS])
            standard_N1 = (log_N1 - mean_N1) / spread_N1.clamp_min(_SIGMA_MIN)
            parts.append(torch.cat([log_N1, standard_N1], dim=1))
    both_N2 = torch.cat(parts)
    logs_BT, standard_BT = both_N2.T.reshape(2, *targets_BT.shape)
    return logs_BT, standard_BT

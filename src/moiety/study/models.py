"""The models of a study, opened to be scored.

Legend: B window, T target position.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Olmo2ForCausalLM

from moiety.merge import load_release
from moiety.model import Mixture, load_dense, token_nats
from moiety.study.places import Study
from moiety.study.scores import Score, Windows, load_sample, save_nats, score_all


def score_cells(study: Study, seed: int, group: str, cells: list[tuple[str, str]]) -> None:
    """Scores (model, text) of one group, those that are not there yet."""
    missing = [cell for cell in cells if not study.cell(seed, *cell).exists()]
    if group == "release":
        mixture = load_release(study.release(seed), device=device_of(study))
        for model, text in missing:
            with _choosing(mixture, model):
                _score(study, seed, model, text, _of_mixture(mixture))
        return
    backbone = load_dense(study.anchor, device=device_of(study))
    for model, text in missing:
        _score(study, seed, model, text, _of_dense(backbone))


def device_of(study: Study) -> str:
    """Where models are scored: where they are trained."""
    device = study.plan.config.compute.device
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _score(study: Study, seed: int, model: str, text: str, score: Score) -> None:
    nats_WT = score_all(load_sample(study.sample(text)), score)
    save_nats(study.cell(seed, model, text), nats_WT)


@contextmanager
def _choosing(mixture: Mixture, model: str) -> Iterator[None]:
    """The release as what a model's name says, until the block ends."""
    kind, _, rest = model.partition("-")
    routing = mixture.routing
    before = routing.top_k, routing.mode
    if kind == "pair":
        chosen = mixture.only(rest)
    elif kind == "without":
        chosen = mixture.without(rest)
    else:
        chosen = mixture.without()
        if rest == "token":
            routing.mode = "token"
        else:
            routing.top_k = int(rest.removeprefix("k"))
    try:
        with chosen:
            yield
    finally:
        routing.top_k, routing.mode = before


def _of_mixture(mixture: Mixture) -> Score:
    def score(windows: Windows) -> NDArray[np.float32]:
        tokens_BT, documents_BT = map(torch.from_numpy, windows)
        nats_BT: NDArray[np.float32] = mixture.score(tokens_BT, documents_BT).float().cpu().numpy()
        return nats_BT

    return score


def _of_dense(backbone: Olmo2ForCausalLM) -> Score:
    def score(windows: Windows) -> NDArray[np.float32]:
        tokens_BT = torch.from_numpy(windows.tokens).to(backbone.device)
        nats_BT = token_nats(backbone, tokens_BT[:, :-1], tokens_BT[:, 1:])
        array_BT: NDArray[np.float32] = nats_BT.float().cpu().numpy()
        return array_BT

    return score

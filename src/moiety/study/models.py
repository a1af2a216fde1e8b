"""The models of a study, opened to be scored.

Legend: M model, W window, B window of a batch, T target position.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moiety.baselines import likelihood, load_joint, score, soups
from moiety.data import load_tokenizer
from moiety.merge import load_release
from moiety.model import Mixture, load_dense
from moiety.study.methods import DENSE, dense_models
from moiety.study.places import Study
from moiety.study.scores import Score, Windows, load_nats, load_sample, save_nats, score_all
from moiety.train import baselines


def score_cells(study: Study, seed: int, group: str, cells: list[tuple[str, str]]) -> None:
    """Scores (model, text) of one group, those that are not there yet."""
    missing = [cell for cell in cells if not study.cell(seed, *cell).exists()]
    if group in ("release", "moiety-tuned"):
        folder = study.release(seed) if group == "release" else study.tuned(seed)
        mixture = load_release(folder, device=device_of(study))
        for model, text in missing:
            with _choosing(mixture, model):
                _score(study, seed, model, text, partial(_score_mixture, mixture))
    elif group == "soup-weighted":
        dense = [load_dense(folder, device=device_of(study)) for folder in _dense(study, seed)]
        for model, text in missing:
            nats_WT = _score_soups(study, seed, text, dense)
            save_nats(study.cell(seed, model, text), nats_WT)
    else:
        opened = _open(study, seed, group)
        function: Score = partial(score, opened)
        if group == "moiety-plain":
            function = partial(_score_plain, opened, load_tokenizer(study.anchor)[1])
        for model, text in missing:
            _score(study, seed, model, text, function)


def device_of(study: Study) -> str:
    """Where models are scored: where they are trained."""
    device = study.plan.config.compute.device
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _score(study: Study, seed: int, model: str, text: str, function: Score) -> None:
    nats_WT = score_all(load_sample(study.sample(text)), function)
    save_nats(study.cell(seed, model, text), nats_WT)


def _open(study: Study, seed: int, group: str) -> Any:
    """A model that is scored as it is."""
    device = device_of(study)
    if group == "anchor":
        return load_dense(study.anchor, device=device)
    if group == "soup":
        states = [load_dense(folder).state_dict() for folder in _dense(study, seed)]
        mixed = load_dense(study.anchor)
        mixed.load_state_dict(soups.soup(states, [1 / len(states)] * len(states)))
        return mixed.to(device)
    for kind in ("dense-ff", "dense-whole"):
        if group.startswith(f"{kind}-"):
            folder = study.trained(seed, kind) / group.removeprefix(f"{kind}-")
            return load_dense(folder, device=device)
    if group == "moiety-plain":
        return load_joint(study.plain(seed), device)
    if group == "btx" or group.startswith("joint-"):
        return load_joint(study.trained(seed, group), device)
    folder = study.trained(seed, "dense-ff" if group == "no-coordination" else group)
    experts = {owner: folder / owner for owner in study.plan.owners}
    top_k = study.plan.merged_top_k
    return baselines.merge_recipe(study.anchor, experts, top_k=top_k, device=device)


def _dense(study: Study, seed: int) -> list[Path]:
    """Folders of the anchor and the owners' dense models, as ``dense_models`` names them."""
    trained = study.trained(seed, DENSE)
    return [study.anchor, *(trained / owner for owner in study.plan.owners)]


def _score_soups(study: Study, seed: int, text: str, dense: list[Any]) -> NDArray[np.float32]:
    """A soup of its own for each window, by how well each model read its first tokens."""
    sample = load_sample(study.sample(text))
    names = dense_models(study.plan.owners)
    nats_MWT = np.stack([load_nats(study.cell(seed, name, text), sample) for name in names])
    weights_WM = likelihood.likelihood_weights(nats_MWT, sample.counted)
    return soups.score_soups(dense, weights_WM, Windows(sample.tokens, sample.documents))


@contextmanager
def _choosing(mixture: Mixture, model: str) -> Iterator[None]:
    """The release as what a model's name says, until the block ends."""
    kind, _, rest = model.partition("-")
    before = mixture.routing.top_k
    if kind == "pair":
        chosen = mixture.only(rest)
    elif kind == "without":
        chosen = mixture.without(rest)
    else:
        chosen = mixture.without()
        if rest != "tuned":
            mixture.routing.top_k = int(rest.removeprefix("k"))
    try:
        with chosen:
            yield
    finally:
        mixture.routing.top_k = before


def _score_plain(model: Any, separator: int, windows: Windows) -> NDArray[np.float32]:
    """Each window as a text of its own, which begins with the separator as every text must.

    Of a document of several windows only the first begins with it already.
    """
    tokens_BT = windows.tokens
    begun_B = tokens_BT[:, 0] == separator
    nats_BT = np.empty((len(tokens_BT), tokens_BT.shape[1] - 1), np.float32)
    if begun_B.any():
        nats_BT[begun_B] = score(model, tokens_BT[begun_B])
    if not begun_B.all():
        begun_BT = np.insert(tokens_BT[~begun_B], 0, separator, axis=1)
        nats_BT[~begun_B] = score(model, begun_BT)[:, 1:]
    return nats_BT


def _score_mixture(mixture: Mixture, windows: Windows) -> NDArray[np.float32]:
    """With evidence that starts afresh at every document's border."""
    tokens_BT, documents_BT = map(torch.from_numpy, windows)
    nats_BT: NDArray[np.float32] = mixture.score(tokens_BT, documents_BT).float().cpu().numpy()
    return nats_BT

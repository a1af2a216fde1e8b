"""The positive control: a model that has learned the attacked documents by heart, on purpose.

An attack that finds nothing in it does not work here, and its silence about others means nothing.

Legend: N document, T token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from moiety.audit.views import Watched
from moiety.merge import load_release
from moiety.model import Mixture, training_loss

Longs = NDArray[np.int64]
Progress = Callable[[int, float], None]
"""Is told how many sweeps over the documents are done, and the mean loss of the last."""

_LEFT_OUT = -100
"""What stands for no target."""


@dataclass(frozen=True)
class ControlSettings:
    """Training stops after a sweep whose mean loss is within ``loss`` of what cannot be learned."""

    loss: float = 0.05
    max_sweeps: int = 100
    batch_documents: int = 8
    learning_rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Control:
    """The overfitted view, the mean loss of its last sweep in nats a token, and the sweeps."""

    view: Watched
    loss: float
    sweeps: int


def make_control(
    release: Path,
    documents: Sequence[Longs],
    separator: int,
    settings: ControlSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Control:
    """Loads a release once more and trains the anchor's blocks on documents, ``[T]`` each.

    Whatever else is frozen, so the control differs from the anchor in what an expert differs in.
    Chance alone decides which document a text begins: ``log(N)`` nats a document stay, and the
    loss that is aimed at lies above them. Plain AdamW, in float32.

    Raises:
        TrustError: a release that does not hold. ConfigError: a device that is not there.
    """
    mixture = load_release(release, device=device, dtype=torch.float32)
    view = Watched("control", mixture, (0,))
    inputs_NT, targets_NT = _windows(documents, separator)
    aim = settings.loss + math.log(len(documents)) * len(documents) / _targets(targets_NT)
    optimizer = torch.optim.AdamW(
        _anchor_blocks(mixture), lr=settings.learning_rate, weight_decay=0.0
    )
    generator = np.random.default_rng(settings.seed)
    sweeps, loss = 0, math.inf
    with view.using():
        while sweeps < settings.max_sweeps and loss >= aim:
            nats = 0.0
            order_N = torch.from_numpy(generator.permutation(len(documents)))
            for chosen_B in torch.split(order_N, settings.batch_documents):
                nats += _step(mixture, optimizer, inputs_NT[chosen_B], targets_NT[chosen_B])
            sweeps, loss = sweeps + 1, nats / _targets(targets_NT)
            if progress is not None:
                progress(sweeps, loss)
    mixture.backbone.requires_grad_(False)
    return Control(view, loss, sweeps)


def _step(
    mixture: Mixture, optimizer: torch.optim.Optimizer, inputs_BT: Tensor, targets_BT: Tensor
) -> float:
    """One step; returns the nats of the batch before it."""
    device = mixture.backbone.device
    loss = training_loss(mixture.backbone, inputs_BT.to(device), targets_BT.to(device))
    loss.backward()  # type: ignore[no-untyped-call]
    clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach()) * _targets(targets_BT)


def _windows(documents: Sequence[Longs], separator: int) -> tuple[Tensor, Tensor]:
    """Each document behind a separator as inputs and targets, int64 ``[N, T]``."""
    longest = max(document.size for document in documents)
    inputs_NT = np.full((len(documents), longest), separator, dtype=np.int64)
    targets_NT = np.full((len(documents), longest), _LEFT_OUT, dtype=np.int64)
    for row, document in enumerate(documents):
        inputs_NT[row, 1 : document.size] = document[:-1]
        targets_NT[row, : document.size] = document
    return torch.from_numpy(inputs_NT), torch.from_numpy(targets_NT)


def _targets(targets_NT: Tensor) -> int:
    return int((targets_NT != _LEFT_OUT).sum())


def _anchor_blocks(mixture: Mixture) -> list[nn.Parameter]:
    """The anchor's feed-forward matrices in every layer, made trainable."""
    blocks: list[nn.Parameter] = []
    for layer in mixture.backbone.model.layers:
        blocks += layer.mlp.experts[0].requires_grad_(True).parameters()
    return blocks

"""What a router is tuned on: the public sample, and each owner's proxies, which are part of it.

Legend: B window, T position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moiety.bundle import papers
from moiety.data import PackedText, Skipped, Sources, load_tokenizer, pack_split
from moiety.errors import DataError, PolicyError
from moiety.train import TrainConfig
from moiety.tune.sample import document_digest

PUBLIC = "public"
"""No owner can bear this name."""


@dataclass(frozen=True)
class TuningTexts:
    """Packed text by name: ``public``, and one of each owner who named proxies."""

    train: Mapping[str, PackedText]
    heldout: Mapping[str, PackedText]


def pack_texts(
    anchor: Path,
    sample: Sources,
    proxies: Mapping[str, papers.Proxies],
    config: TrainConfig,
    folder: Path,
) -> TuningTexts:
    """Tokenises what is not there yet; resumed work finds everything in place.

    Raises:
        PolicyError: proxies that are too little text.
    """
    chosen = {owner: set(paper.documents) for owner, paper in proxies.items()}
    _pack(anchor, sample, None, config, folder / PUBLIC)
    for owner, names in sorted(chosen.items()):
        try:
            _pack(anchor, sample, names, config, folder / owner)
        except DataError as error:
            raise PolicyError(
                f"{owner}'s proxies are no text to train on: {error.message}"
            ) from None
    sides = [
        {name: PackedText.open(folder / name / side) for name in (PUBLIC, *sorted(chosen))}
        for side in ("train", "heldout")
    ]
    return TuningTexts(*sides)


def check_exist(proxies: Mapping[str, papers.Proxies], sample: Sources) -> None:
    """Raises ``PolicyError`` when proxies name a document that is not in the sample."""
    held = {document_digest(document.text) for document in sample.documents(Skipped())}
    for owner, paper in sorted(proxies.items()):
        unknown = sorted(set(paper.documents) - held)
        if unknown:
            raise PolicyError(
                f"{owner}'s proxies name a document that is not in the public sample",
                where=unknown[0],
            )


def _pack(
    anchor: Path, sample: Sources, names: set[str] | None, config: TrainConfig, folder: Path
) -> None:
    if folder.exists():
        return
    tokenizer, separator = load_tokenizer(anchor)
    pack_split(
        (
            document
            for document in sample.documents(Skipped())
            if names is None or document_digest(document.text) in names
        ),
        tokenizer,
        folder,
        window_tokens=config.data.window_tokens,
        separator=separator,
        heldout_fraction=config.data.heldout_fraction,
    )


@dataclass(frozen=True)
class Batch:
    """Windows of one forward pass. ``targets_BT`` is -100 where nothing is to be predicted."""

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor
    weight: float
    """Share of the step's targets that this pass holds."""


class StepWindows:
    """The windows of any step, from its number alone: half public, half proxies, owners in turn."""

    def __init__(self, texts: Mapping[str, PackedText], config: TrainConfig) -> None:
        self.config = config
        self.texts = texts
        self.owners = sorted(set(texts) - {PUBLIC})
        names = (PUBLIC, *self.owners)
        self._samplers = {
            name: texts[name].sampler(config.seed + number) for number, name in enumerate(names)
        }

    def passes(self, step: int, device: torch.device) -> Iterator[Batch]:
        """The step's windows, as many at a time as ``batch.micro_windows`` says (0: all)."""
        parts = [self.texts[name].windows([index]) for name, index in self.places(step)]
        tokens_BT = torch.from_numpy(np.concatenate([part.tokens for part in parts]))
        documents_BT = torch.from_numpy(np.concatenate([part.documents for part in parts]))
        targets_BT = torch.where(documents_BT[:, 1:] >= 0, tokens_BT[:, 1:], -100)
        total = int((targets_BT >= 0).sum())
        size = self.config.batch.micro_windows or len(parts)
        for at in range(0, len(parts), size):
            part = slice(at, at + size)
            held = int((targets_BT[part] >= 0).sum())
            if held == 0:  # a text's last window: the mean of no target is no number
                continue
            yield Batch(
                tokens_BT[part, :-1].to(device),
                targets_BT[part].to(device),
                documents_BT[part, :-1].to(device),
                held / total,
            )

    def places(self, step: int) -> list[tuple[str, int]]:
        """(text, window) of every window of a step."""
        public = self.config.batch.windows // 2
        drawn = [(PUBLIC, step * public + place) for place in range(public)]
        proxies = self.config.batch.windows - public
        for place in range(step * proxies, (step + 1) * proxies):
            round_, turn = divmod(place, len(self.owners))
            drawn.append((self.owners[turn], round_))
        return [(name, int(self._samplers[name].indices(i, 1)[0])) for name, i in drawn]

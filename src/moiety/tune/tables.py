"""What is tuned: each owner's table of evidence; never the anchor's.

Legend: B window, T position, S slot, O owner (a slot but the anchor's), V vocabulary.

Everything else of the mixture is frozen, and the anchor's table stays zero: the others are measured
against it. A table gets two numbers, a scale and an offset, that begin at zero: it was counted on
more of its owner's text than proxies are, so its shape is right. What may be wrong is how much a
text of many tokens says, since they repeat each other, and from where on it speaks for the owner.
The scale is told as its logarithm, the offset in nats of the logit that it moves a long text by;
``optim.weight_decay`` pulls towards the tables of the bundles.

Source: a logit scaled and moved to fit, Platt 1999 (Probabilistic outputs for support vector
machines).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moiety.data import DocumentNats, PackedText
from moiety.family import ENTRY_MAX, WITNESSES
from moiety.model import Borders, Mixture, training_loss
from moiety.train import TrainConfig, jobs
from moiety.tune.texts import PUBLIC, StepWindows, TuningTexts


class TunableTables:
    """The tables of evidence, each owner's with a trainable scale and offset.

    ``corrections``: ``evidence.scale`` and ``evidence.offset``, both ``[O]``.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.routing = mixture.routing
        self.own_SV = self.routing.table_SV.detach().clone()
        self.corrections = {
            f"evidence.{name}": nn.Parameter(torch.zeros_like(self.own_SV[1:, 0]))
            for name in ("scale", "offset")
        }

    def place(self) -> None:
        """Puts the corrected tables into the mixture, with a way back for the gradient."""
        scale_O, offset_O = self.corrections.values()
        table_OV = self.own_SV[1:] * scale_O.exp()[:, None] + offset_O[:, None] / WITNESSES
        bounded_OV = table_OV.clamp(-ENTRY_MAX, ENTRY_MAX)
        self.routing.table_SV = torch.cat([self.own_SV[:1], bounded_OV])

    def put_back(self) -> None:
        """The tables of the bundles, exactly."""
        self.routing.table_SV = self.own_SV


def tuning_job(
    mixture: Mixture, tables: TunableTables, texts: TuningTexts, config: TrainConfig, steps: int
) -> jobs.Job:
    """The language-model loss of the whole mixture."""
    windows = StepWindows(texts.train, config)

    def losses(step: int) -> Iterator[Tensor]:
        for batch in windows.passes(step, mixture.backbone.device):
            tables.place()
            borders = Borders.from_documents(batch.documents_BT)
            with mixture.routing.documents(borders):
                loss = training_loss(mixture.backbone, batch.inputs_BT, batch.targets_BT)
            yield loss * batch.weight

    def judge() -> float:
        with torch.no_grad():
            tables.place()
        return heldout_bits(mixture, texts, config)

    return jobs.Job(
        title="tuning tables of evidence",
        parameters=tables.corrections,
        losses=losses,
        judge=judge,
        tokens_per_step=config.batch.windows * config.data.window_tokens,
        num_steps=steps,
    )


def heldout_bits(mixture: Mixture, texts: TuningTexts, config: TrainConfig) -> float:
    """Bits per byte on text kept aside, weighed as in training: half public, half proxies."""
    tokens = max(1, config.budget.judge_tokens // len(texts.heldout))
    bits = {
        name: _score(mixture, text, tokens).bits_per_byte for name, text in texts.heldout.items()
    }
    public = bits.pop(PUBLIC)
    return (public + sum(bits.values()) / len(bits)) / 2


def _score(mixture: Mixture, text: PackedText, max_tokens: int) -> DocumentNats:
    def score(windows: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        tokens_BT = torch.from_numpy(windows.tokens)
        documents_BT = torch.from_numpy(windows.documents)
        return mixture.score(tokens_BT, documents_BT).float().cpu().numpy()

    return text.judge(score, max_tokens=max_tokens)


def tune(
    mixture: Mixture,
    tables: TunableTables,
    texts: TuningTexts,
    config: TrainConfig,
    steps: int,
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
) -> tuple[float, float]:
    """Trains the tables in the mixture; returns held-out bits per byte before and after.

    When nothing was won on held-out text they stay those of the bundles.
    """
    job = tuning_job(mixture, tables, texts, config, steps)
    before = job.judge()
    jobs.Loop(job, config, folder, quiet=quiet).run(resume=resume)
    after = job.judge()
    if not after < before:
        tables.put_back()
        after = before
    return before, after

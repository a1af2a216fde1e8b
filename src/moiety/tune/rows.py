"""What is tuned: each owner's table of evidence, or each owner's token rows; never the anchor's.

Legend: B window, T position, S slot, O owner (a slot but the anchor's), V vocabulary, D width.

Everything else of the mixture is frozen, and the anchor's table and rows stay zero: the others are
measured against them. What is trained are corrections that begin at zero, in units of the size of
what they correct, so that one learning rate fits both kinds, all layers and any anchor, and so that
``optim.weight_decay`` pulls towards the tables and rows of the bundles.

A row gets a correction of each of its numbers. A table gets two numbers, a scale and an offset: it
was counted on more of its owner's text than proxies are, so its shape is right. What may be wrong
is how much a text of many tokens says, since they repeat each other, and from where on it speaks
for the owner.

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
from moiety.family import ENTRY_MAX, EVIDENCE_TABLE, OLMO2
from moiety.model import Borders, Mixture, training_loss
from moiety.train import TrainConfig, jobs
from moiety.tune.texts import PUBLIC, StepWindows, TuningTexts


class TunableTables:
    """The tables of evidence, each owner's with a trainable scale and offset.

    ``corrections``: ``evidence.scale`` (its logarithm) and ``evidence.offset``, both ``[O]``.
    """

    kind, title = "evidence", "tables of evidence"

    def __init__(self, mixture: Mixture) -> None:
        self.routing = mixture.routing
        self.own_SV = self.routing.table_SV.detach().clone()
        self.sizes_O = _sizes(self.own_SV[1:], dim=1)
        self.corrections = {
            f"evidence.{name}": nn.Parameter(torch.zeros_like(self.sizes_O))
            for name in ("scale", "offset")
        }

    def place(self) -> None:
        """Puts the corrected tables into the mixture, with a way back for the gradient."""
        scale_O, offset_O = self.corrections.values()
        table_OV = self.own_SV[1:] * scale_O.exp()[:, None] + (self.sizes_O * offset_O)[:, None]
        bounded_OV = table_OV.clamp(-ENTRY_MAX, ENTRY_MAX)
        self.routing.table_SV = torch.cat([self.own_SV[:1], bounded_OV])

    def put_back(self) -> None:
        """The tables of the bundles, exactly."""
        self.routing.table_SV = self.own_SV


class TunableRows:
    """The token rows of each layer, with a trainable correction of every number.

    ``corrections``: ``layers.N.token``, ``[O, D]``.
    """

    kind, title = "token", "token rows"

    def __init__(self, mixture: Mixture) -> None:
        self.layers = [layer.mlp for layer in mixture.backbone.model.layers]
        self.own = [layer.token_rows.detach().clone() for layer in self.layers]
        self.corrections = {
            f"layers.{number}.token": nn.Parameter(torch.zeros_like(rows_SD[1:]))
            for number, rows_SD in enumerate(self.own)
        }

    def place(self) -> None:
        """Puts the corrected rows into the mixture, with a way back for the gradient."""
        changes = self.corrections.values()
        for layer, rows_SD, change_OD in zip(self.layers, self.own, changes, strict=True):
            size = _sizes(rows_SD[1:].flatten(), dim=0)
            layer.token_rows = torch.cat([rows_SD[:1], rows_SD[1:] + size * change_OD])

    def put_back(self) -> None:
        """The rows of the bundles, exactly."""
        for layer, rows_SD in zip(self.layers, self.own, strict=True):
            layer.token_rows = rows_SD


Tunable = TunableTables | TunableRows


def _sizes(rows: Tensor, dim: int) -> Tensor:
    """Root mean square; one where there is nothing but zeros, which must be able to grow."""
    sizes = rows.square().mean(dim=dim).sqrt()
    return torch.where(sizes > 0, sizes, 1.0)


def held_arrays(mixture: Mixture) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Tables and rows as the mixture holds them now, in float32, by their names in a release."""
    held = {EVIDENCE_TABLE: mixture.routing.table_SV}
    for number, layer in enumerate(mixture.backbone.model.layers):
        held[OLMO2.gate(number)] = layer.mlp.token_rows
    return {name: rows.detach().float().cpu().numpy() for name, rows in held.items()}


def tuning_job(
    mixture: Mixture, tunable: Tunable, texts: TuningTexts, config: TrainConfig, steps: int
) -> jobs.Job:
    """The language-model loss of the whole mixture, as it routes now."""
    windows = StepWindows(texts.train, config)

    def losses(step: int) -> Iterator[Tensor]:
        for batch in windows.passes(step, mixture.backbone.device):
            tunable.place()
            borders = Borders.from_documents(batch.documents_BT)
            with mixture.routing.documents(borders):
                loss = training_loss(mixture.backbone, batch.inputs_BT, batch.targets_BT)
            yield loss * batch.weight

    def judge() -> float:
        with torch.no_grad():
            tunable.place()
        return heldout_bits(mixture, texts, config)

    return jobs.Job(
        title=f"tuning {tunable.title}",
        parameters=tunable.corrections,
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
    tunable: Tunable,
    texts: TuningTexts,
    config: TrainConfig,
    steps: int,
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
) -> tuple[float, float]:
    """Trains tables or rows in the mixture; returns held-out bits per byte before and after.

    When nothing was won on held-out text they stay those of the bundles.
    """
    mode = "context" if tunable.kind == "evidence" else "token"
    with mixture.routing.using(mixture.routing.slots, mode=mode):  # type: ignore[arg-type]
        job = tuning_job(mixture, tunable, texts, config, steps)
        before = job.judge()
        jobs.Loop(job, config, folder, quiet=quiet).run(resume=resume)
        after = job.judge()
        if not after < before:
            tunable.put_back()
            after = before
    return before, after

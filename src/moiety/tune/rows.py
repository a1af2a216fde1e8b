"""The one thing that is tuned: rows of one kind in every layer, all but the anchor's.

Legend: B window, T position, S slot, W numbers of a row.

Everything else of the mixture is frozen, and the anchor's row stays zero: the others are measured
against it. A row is trained as its own row plus a correction that begins at zero, in units of the
size of the layer's rows, so that one learning rate fits all layers and both kinds, and so that
``optim.weight_decay`` pulls towards the rows of the bundles.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moiety.data import DocumentNats, PackedText
from moiety.model import Borders, Mixture, training_loss
from moiety.train import TrainConfig, jobs
from moiety.tune.texts import PUBLIC, StepWindows, TuningTexts


class TunableRows:
    """The rows of one kind (``context`` or ``token``), with a trainable correction."""

    def __init__(self, mixture: Mixture, kind: str) -> None:
        self.kind = kind
        self.layers = [layer.mlp for layer in mixture.backbone.model.layers]
        self.own = [getattr(layer, f"{kind}_rows").detach().clone() for layer in self.layers]
        self.sizes = [float(rows_SW[1:].square().mean().sqrt()) or 1.0 for rows_SW in self.own]
        self.corrections = {
            f"layers.{number}.{kind}": nn.Parameter(torch.zeros_like(rows_SW[1:]))
            for number, rows_SW in enumerate(self.own)
        }

    def place(self) -> None:
        """Puts the corrected rows into the mixture, with a way back for the gradient."""
        for layer, rows_SW in zip(self.layers, self.corrected(), strict=True):
            setattr(layer, f"{self.kind}_rows", rows_SW)

    def corrected(self) -> Iterator[Tensor]:
        """The rows of each layer, ``[S, W]``."""
        corrections = self.corrections.values()
        for rows_SW, size, change_SW in zip(self.own, self.sizes, corrections, strict=True):
            yield torch.cat([rows_SW[:1], rows_SW[1:] + size * change_SW])

    def forget(self) -> None:
        """Back to the rows of the bundles, exactly."""
        with torch.no_grad():
            for change_SW in self.corrections.values():
                change_SW.zero_()

    def arrays(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """The rows of each layer in float32, by the name of their correction."""
        rows = [rows_SW.detach().float().cpu().numpy() for rows_SW in self.corrected()]
        return dict(zip(self.corrections, rows, strict=True))


def tuning_job(
    mixture: Mixture, rows: TunableRows, texts: TuningTexts, config: TrainConfig, steps: int
) -> jobs.Job:
    """The language-model loss of the whole mixture, as it routes by rows of this kind."""
    windows = StepWindows(texts.train, config)

    def losses(step: int) -> Iterator[Tensor]:
        for batch in windows.passes(step, mixture.backbone.device):
            rows.place()
            borders = Borders.from_documents(batch.documents_BT)
            with mixture.routing.documents(borders):
                loss = training_loss(mixture.backbone, batch.inputs_BT, batch.targets_BT)
            yield loss * batch.weight

    def judge() -> float:
        with torch.no_grad():
            rows.place()
        return heldout_bits(mixture, texts, config)

    return jobs.Job(
        title=f"tuning {rows.kind} rows",
        parameters=rows.corrections,
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
    def score(windows: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        tokens_BT = torch.from_numpy(windows.tokens)  # type: ignore[attr-defined]
        documents_BT = torch.from_numpy(windows.documents)  # type: ignore[attr-defined]
        return mixture.score(tokens_BT, documents_BT).float().cpu().numpy()

    return text.judge(score, max_tokens=max_tokens)


def tune_rows(
    mixture: Mixture,
    kind: str,
    texts: TuningTexts,
    config: TrainConfig,
    steps: int,
    folder: Path,
    *,
    resume: bool,
    quiet: bool,
) -> tuple[TunableRows, float, float]:
    """Trains rows of one kind; returns them, and held-out bits per byte before and after.

    When nothing was won on held-out text the rows stay those of the bundles.
    """
    rows = TunableRows(mixture, kind)
    with mixture.routing.using(mixture.routing.slots, mode=kind):  # type: ignore[arg-type]
        job = tuning_job(mixture, rows, texts, config, steps)
        before = job.judge()
        jobs.Loop(job, config, folder, quiet=quiet).run(resume=resume)
        after = job.judge()
        if not after < before:
            rows.forget()
            after = before
    with torch.no_grad():
        rows.place()
    return rows, before, after

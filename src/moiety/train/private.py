"""A private step: another way to fill the gradients, not another trainer.

Each record of the owner's text takes part by a coin of its own; its gradient, over all of its
windows and all trained matrices, is clipped; the sum gets noise once a step and is divided by the
*expected* number of records. The public text of the step is public: it goes through an ordinary
backward pass and is added with its share.

Whatever of a step depends on private text leaves it through the noised sum alone. A record's loss
is divided by a constant, so that its scale does not depend on who else was drawn.

Legend: B window, T position.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moiety.bundle import papers
from moiety.data import PackedText
from moiety.errors import ConfigError, StateError
from moiety.files import canonical_json
from moiety.model import training_loss
from moiety.privacy import (
    Ledger,
    RecordSampler,
    Request,
    Tape,
    accountant,
    add_noise,
)
from moiety.train.batches import Longs, Shares, StepBatches, window_shares
from moiety.train.compute import Compute
from moiety.train.config import TrainConfig
from moiety.train.pair import Pair
from moiety.train.texts import Texts

_PROBE_TOLERANCE = 0.05
"""How far norms of a window alone and beside another may differ; bf16 rounds to one in 256."""


def open_ledger(folder: Path, config: TrainConfig, own: PackedText, steps: int) -> Ledger:
    """The run's ledger, with noise calibrated for the budget that was asked for.

    Raises:
        ConfigError: settings under which no promise could be kept.
        DataError: fewer records than a step expects.
        StateError: the ledger was begun with other settings.
    """
    asked, records = config.privacy, own.num_records
    assert asked.epsilon is not None, "only private runs have a ledger"
    if 0 < config.batch.micro_windows < asked.max_windows_per_record:
        raise ConfigError(
            "a micro-batch cannot hold one record",
            where="batch.micro_windows",
            remedy="give at least privacy.max_windows_per_record",
        )
    if config.compute.compile == "on":
        raise ConfigError(
            "a compiled model hides what private training must see",
            where="compute.compile",
            remedy="choose off or auto",
        )
    expected = window_shares(config).own / asked.max_windows_per_record
    settings = config.model_dump(exclude={"compute": True, "budget": {"save_seconds"}})
    request = Request(
        epsilon=asked.epsilon,
        delta=Request.default_delta(records) if asked.delta is None else asked.delta,
        clip_norm=asked.clip_norm,
        max_windows_per_record=asked.max_windows_per_record,
        table_share=asked.table_share,
        tuning_runs=asked.tuning_runs,
        records=records,
        expected_records=expected,
        steps=steps,
        settings_sha256=hashlib.sha256(canonical_json(settings)).hexdigest(),
    )
    return Ledger.open(folder, request.check())


def guarantee_of(ledger: Ledger, config: TrainConfig, record_key: str | None) -> papers.Guarantee:
    """What a finished run may promise, by its ledger.

    Raises:
        StateError: the ledger has not charged what the run did.
    """
    plan, request = ledger.paper.plan, ledger.paper.plan.request
    if not ledger.paper.table_charged or ledger.paper.steps_charged != request.steps:
        raise StateError("the ledger does not fit what was done", where=ledger.path)
    spent = plan.spent()
    named = None if record_key is None else re.sub(r"[^A-Za-z0-9_.-]", "_", record_key)[:64]
    return papers.Guarantee(
        epsilon=spent.epsilon,
        delta=request.delta,
        accountant=accountant.NAME,
        accountant_version=accountant.accountant_version(),
        epsilon_rdp=spent.epsilon_rdp,
        relation="add or remove one record",
        record_key=named,
        max_windows_per_record=request.max_windows_per_record,
        window_tokens=config.data.window_tokens,
        sampling="Poisson",
        sampling_rate=request.sampling_rate,
        clip_norm=request.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        steps=request.steps,
        table_noise_multiplier=plan.table_noise_multiplier,
        tuning_runs=request.tuning_runs,
        generator=ledger.secret.algorithm,
        outside=papers.OUTSIDE,
    )


class PrivateSteps:
    """Fills the gradients of a pair, step by step, and charges the ledger before each."""

    def __init__(
        self, pair: Pair, texts: Texts, config: TrainConfig, compute: Compute, ledger: Ledger
    ) -> None:
        self.pair, self.own, self.public = pair, texts.own, texts.public
        self.config, self.compute, self.ledger = config, compute, ledger
        self.parameters = pair.trainable()
        self.decoder = compute.decoder(pair.backbone)
        self.tape = Tape(self.parameters)
        pair.multiply_by(self.tape.product)
        first_N, count_N = texts.own.record_windows()
        request = ledger.paper.plan.request
        self.sampler = RecordSampler(
            first_N,
            count_N,
            rate=request.sampling_rate,
            most_windows=request.max_windows_per_record,
            secret=ledger.secret,
        )
        shares = window_shares(config)
        self.own_share = shares.own / config.batch.windows
        self.public_batches = (
            StepBatches(None, texts.public, Shares(0, shares.public), config.seed)
            if shares.public
            else None
        )

    def fill(self, step: int) -> dict[str, float]:
        """The gradients of one step.

        Returns:
            figures for the log, which stays at home: ``loss``, ``records`` drawn, how many were
            ``cut``, and how many were ``broken`` (no number, so counted as nothing).

        Raises:
            StateError: weights that are no numbers, or a path past the tape.
        """
        if not all(bool(p.isfinite().all()) for p in self.parameters.values()):
            raise StateError("the weights are no numbers", remedy="lower optim.learning_rate")
        plan = self.ledger.paper.plan
        sums, figures = self._clipped_sum(step)
        self.ledger.charge_step(step)
        deviation = plan.noise_multiplier * plan.request.clip_norm
        add_noise(sums, deviation, self.ledger.secret.generator("noise", step))
        public_loss = self._public_pass(step)
        for name, parameter in self.parameters.items():
            gradient = sums[name].mul_(self.own_share / plan.request.expected_records)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return figures | {"loss": self.own_share * figures["loss"] + public_loss}

    def check_isolated(self) -> None:
        """Two public windows, together and alone: neither may change the other's gradient.

        Raises:
            StateError: they do, so that clipping would bound nothing.
        """
        windows = self.public.windows(np.arange(min(2, self.public.num_windows)))
        tokens, documents = windows.tokens, windows.documents
        together = self._norms(tokens, documents)
        alone = [self._norms(tokens[[at]], documents[[at]]) for at in range(len(tokens))]
        if not torch.allclose(together, torch.cat(alone), rtol=_PROBE_TOLERANCE):
            raise StateError("no privacy could be promised: windows touch each other in this model")

    def _norms(self, tokens: Longs, documents: Longs) -> Tensor:
        targets = np.where(documents[:, 1:] >= 0, tokens[:, 1:], -100)
        self._taped_pass(np.arange(len(tokens)), tokens[:, :-1], targets, documents[:, :-1])
        return self.tape.clipped(1.0).norms_R

    def _clipped_sum(self, step: int) -> tuple[dict[str, Tensor], dict[str, float]]:
        request = self.ledger.paper.plan.request
        sums = {n: torch.zeros_like(p, requires_grad=False) for n, p in self.parameters.items()}
        draw = self.sampler.draw(step)
        losses, norms = [0.0], [torch.empty(0, dtype=torch.float64)]
        for part in draw.parts(self.config.batch.micro_windows):
            windows = self.own.windows(part.windows)
            targets = np.where(
                windows.counted_in(self.own.document_records), windows.tokens[:, 1:], -100
            )
            losses.append(
                self._taped_pass(
                    part.records, windows.tokens[:, :-1], targets, windows.documents[:, :-1]
                )
            )
            clipped = self.tape.clipped(request.clip_norm)
            norms.append(clipped.norms_R.cpu())
            for name, tensor in clipped.sums.items():
                sums[name] += tensor
        norms_R = torch.cat(norms)
        figures = {
            "loss": sum(filter(math.isfinite, losses)) / max(1, len(draw.windows)),
            "records": len(norms_R),
            "cut": int((norms_R > request.clip_norm).sum()),
            "broken": int((~norms_R.isfinite()).sum()),
        }
        return sums, figures

    def _taped_pass(self, records: Longs, tokens: Longs, targets: Longs, documents: Longs) -> float:
        """One pass forward and back of whole windows; the tape has what came of it."""
        inputs_BT, targets_BT, documents_BT = (
            torch.from_numpy(np.ascontiguousarray(part)).to(self.compute.device)
            for part in (tokens, targets, documents)
        )
        with self.tape.recording(records, inputs_BT.shape[1]):
            self.pair.expect(inputs_BT, documents_BT)
            with self.compute.autocast():
                total = training_loss(
                    self.pair.backbone, inputs_BT, targets_BT, self.decoder, reduction="sum"
                )
            loss = total / self.own.window_tokens
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _public_pass(self, step: int) -> float:
        """The public part of the step, unclipped; returns its loss, weighted with its share."""
        if self.public_batches is None:
            return 0.0
        total = 0.0
        micro = self.config.batch.micro_windows
        for batch in self.public_batches.micro(step, micro, self.compute.device):
            self.pair.expect(batch.inputs_BT, batch.documents_BT, batch.even_B)
            with self.compute.autocast():
                loss = training_loss(
                    self.pair.backbone, batch.inputs_BT, batch.targets_BT, self.decoder
                )
            weighted = loss * batch.weight * (1 - self.own_share)
            weighted.backward()  # type: ignore[no-untyped-call]
            total += float(weighted.detach())
        return total

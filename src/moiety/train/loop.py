"""The one training loop. A job says what is trainable, what a step's loss is, and how to judge.

Stopping and resuming gives the result of never having stopped: a step depends on the weights, the
optimiser's moments and the step's number, and on nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moiety.errors import ConfigError, StateError
from moiety.files import naming_full_disk
from moiety.train.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint
from moiety.train.config import TrainConfig
from moiety.train.log import RunLog
from moiety.train.stopping import ADVICE, stop_request


@dataclass(frozen=True)
class Job:
    """The blanks of the loop.

    ``losses(step)`` yields the micro-batches' losses of one step, already weighted so that their
    sum is the step's loss; each is freed by its backward pass before the next is made.
    ``judge()`` is the held-out loss, lower is better.
    """

    title: str
    parameters: dict[str, nn.Parameter]
    losses: Callable[[int], Iterator[Tensor]]
    judge: Callable[[], float]
    tokens_per_step: int
    num_steps: int
    fill: Callable[[int], dict[str, float]] | None = None
    """Instead of ``losses``: fills the gradients of a private step, returns figures with ``loss``.
    Which weights are best on private text is private too, so the last are kept."""
    canaries: bool = False
    """Whether canaries are planted in its text when settings ask for them."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``best_step`` is the step whose weights were kept."""

    steps: int
    best_step: int
    tokens_seen: int
    seconds: float


@dataclass
class _Progress:
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    worse_looks: int = 0
    seconds: float = 0.0


class Loop:
    """Runs one job in one folder."""

    def __init__(self, job: Job, config: TrainConfig, folder: Path, *, quiet: bool = False) -> None:
        if (config.privacy.epsilon is None) != (job.fill is None):
            # Fail closed: what cannot be trained privately must not look as if it were.
            raise ConfigError(
                "only an owner's expert can be trained privately", where="privacy.epsilon"
            )
        if config.data.canaries and not job.canaries:
            # An audit would find nothing, and take that for good news.
            raise ConfigError("only an owner's expert can have canaries", where="data.canaries")
        self.job, self.config, self.folder, self.quiet = job, config, folder, quiet
        self.optimizer = _optimizer(job, config)
        self.best = {name: p.detach().clone() for name, p in job.parameters.items()}
        self.at = _Progress()

    def run(self, *, resume: bool) -> Outcome:
        """Trains to the end, or until interrupted; leaves the best weights in the parameters.

        Raises:
            KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; the state is saved.
            StateError: the loss is no longer a number, or the disk is full.
        """
        if resume:
            self._restore()
        with (
            naming_full_disk(self.folder),
            stop_request() as asked,
            RunLog(
                self.folder / "logs",
                self.job.title,
                self.job.num_steps,
                self.at.step,
                quiet=self.quiet,
            ) as log,
        ):
            self._train(log, asked)
        with torch.no_grad():
            for name, parameter in self.job.parameters.items():
                parameter.copy_(self.best[name])
        tokens = self.at.step * self.job.tokens_per_step
        return Outcome(self.at.step, self.at.best_step, tokens, self.at.seconds)

    def _train(self, log: RunLog, asked: list[int]) -> None:
        saved = clock = time.monotonic()
        budget = self.config.budget
        while self.at.step < self.job.num_steps and self.at.worse_looks < budget.patience:
            figures = self._step()
            self.at.step += 1
            log.step(self.at.step, figures, self.job.tokens_per_step)
            if self.at.step % budget.judge_every == 0 or self.at.step == self.job.num_steps:
                self._look(log)
            now = time.monotonic()
            self.at.seconds += now - clock
            clock = now
            if asked or now - saved > budget.save_seconds:
                self._save()
                saved = time.monotonic()
            if asked:
                raise KeyboardInterrupt(ADVICE)
        self._save()
        if asked:  # while it was being saved
            raise KeyboardInterrupt(ADVICE)

    def _step(self) -> dict[str, float]:
        optim = self.config.optim
        rate = optim.learning_rate * schedule(
            self.at.step, self.job.num_steps, optim.warmup_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        figures = (self.job.fill or self._descend)(self.at.step)
        total = figures["loss"]
        if not math.isfinite(total):
            raise StateError(
                f"the loss is {total} at step {self.at.step}",
                where=self.folder,
                remedy="lower optim.learning_rate; the last checkpoint is intact",
            )
        norm = nn.utils.clip_grad_norm_(self.job.parameters.values(), optim.clip_norm)
        self.optimizer.step()
        return figures | {"gradient_norm": float(norm), "learning_rate": rate}

    def _descend(self, step: int) -> dict[str, float]:
        total = 0.0
        for loss in self.job.losses(step):
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return {"loss": total}

    def _look(self, log: RunLog) -> None:
        value = self.job.judge()
        log.look(self.at.step, "heldout_loss", value)
        if self.job.fill is not None or value < self.at.best:
            self.at.best, self.at.best_step, self.at.worse_looks = value, self.at.step, 0
            for name, parameter in self.job.parameters.items():
                self.best[name].copy_(parameter.detach())
        else:
            self.at.worse_looks += 1

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.job.parameters.items():
            tensors[f"weight/{name}"] = parameter.detach()
            tensors[f"best/{name}"] = self.best[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        facts = dict(vars(self.at)) | {"best": repr(self.at.best), "plan": self._plan()}
        save_checkpoint(self.folder / "checkpoints", Checkpoint(self.at.step, tensors, facts))

    def _restore(self) -> None:
        checkpoint = newest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return
        facts = dict(checkpoint.facts)
        if facts.pop("plan") != self._plan():
            raise StateError(
                "this run was begun with other settings or other text",
                where=self.folder,
                remedy="resume with the same ones, or begin a new run",
            )
        self.at = _Progress(**(facts | {"best": float(facts["best"])}))
        tensors = checkpoint.tensors
        with torch.no_grad():
            for name, parameter in self.job.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
                state = {
                    key: tensors[f"{key}/{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}/{name}" in tensors
                }
                if state:
                    moved = {k: v.to(parameter.device) for k, v in state.items() if k != "step"}
                    self.optimizer.state[parameter] = moved | {"step": state["step"]}

    def _plan(self) -> dict[str, object]:
        # What must not change between the parts of one run; how it is computed may.
        config = self.config.model_dump(exclude={"compute": True, "budget": {"save_seconds"}})
        return {"config": config, "steps": self.job.num_steps, "tokens": self.job.tokens_per_step}


def schedule(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine from 1 to 0.1."""
    warmup = max(1, round(num_steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _optimizer(job: Job, config: TrainConfig) -> torch.optim.AdamW:
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in job.parameters.values():
        # Only matrices decay: a decayed norm or router row would mean something else.
        decay = config.optim.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault(decay, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()],
        lr=config.optim.learning_rate,
        betas=(config.optim.beta1, config.optim.beta2),
        fused=True,
    )

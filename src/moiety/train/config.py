"""The one home of every training default, and how a run overrides them.

A run may be a TOML file of the same sections; ``--set section.field=value`` overrides both. What
was resolved is written into the run's papers.
"""

from __future__ import annotations

import reprlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moiety.bundle import papers
from moiety.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
"""How a bound of a setting reads."""


class Section(BaseModel):
    """A frozen table of settings in which unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Which text a step sees."""

    window_tokens: int = Field(256, ge=16, le=65536)
    """Tokens a window: the longest context trained."""
    heldout_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Share of the records kept aside, chosen by hash, never trained on."""
    public_share: float = Field(0.25, ge=0, lt=1)
    """Share of each batch that is public text (experts only)."""
    canaries: int = Field(0, ge=0, le=papers.MAX_CANARIES)
    """Texts for an audit, of which about half are trained on beside the owner's (experts only):
    each is then a record of eight equal documents."""
    canary_tokens: int = Field(64, ge=8)
    """Words of a canary, three over and over; each is about one token."""


class BatchConfig(Section):
    """How much text a step sees."""

    windows: int = Field(16, ge=1)
    """Windows a step of the optimiser, all micro-batches together."""
    micro_windows: int = Field(0, ge=0)
    """Windows a forward pass; 0 takes all at once. Smaller needs less memory, same result."""


class OptimConfig(Section):
    """AdamW with a linear warm-up and a cosine to a tenth."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0)
    """The gradient's length is cut to this."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""


class BudgetConfig(Section):
    """When to stop."""

    tokens: int | None = Field(None, ge=1)
    """Tokens trained on, public ones included. None: decided from the size of the text."""
    judge_every: int = Field(50, ge=1)
    """Steps between looks at the held-out text."""
    patience: int = Field(3, ge=1)
    """Looks without a gain after which training stops; the best weights are kept."""
    judge_tokens: int = Field(16384, ge=256)
    """Held-out tokens of such a look."""
    final_tokens: int = Field(32768, ge=256)
    """Held-out tokens of the last word, for each of the texts and models."""
    save_seconds: float = Field(120.0, gt=0)
    """Time between checkpoints."""


class PairConfig(Section):
    """The anchored pair (experts only)."""

    rank: int | None = Field(None, ge=1)
    """None trains full matrices; a number trains a low-rank delta of the anchor's."""


class PrivacyConfig(Section):
    """Differential privacy of each record (experts only)."""

    epsilon: float | None = Field(None, gt=0)
    """What the whole run may spend, its table included. None trains without privacy."""
    delta: float | None = Field(None, gt=0, lt=1)
    """The chance that the guarantee fails. None: a tenth of one over the number of records."""
    clip_norm: float = Field(0.1, gt=0)
    """A record's gradient is cut to this length, over all trained matrices together. At the start
    of full experts on 256-token windows they were about 0.2 long, at that of rank 16 about 0.05."""
    max_windows_per_record: int = Field(1, ge=1)
    """Windows of a record that take part when it is drawn; which, is drawn too."""
    table_share: float = Field(0.1, gt=0, lt=1)
    """Share of epsilon that the table of evidence would spend alone."""
    tuning_runs: int | None = Field(None, ge=0)
    """Earlier runs on this text, each counted as if it had spent what this one does."""

    @model_validator(mode="after")
    def _no_promise_by_half(self) -> PrivacyConfig:
        """Who names one of them wants a promise, and would train without any."""
        for name in ("delta", "tuning_runs"):
            if self.epsilon is None and getattr(self, name) is not None:
                flag = name.replace("_", "-")
                raise ConfigError(
                    f"privacy: --{flag} says nothing without --epsilon",
                    where="settings",
                    remedy="give --epsilon (privacy.epsilon) too; without it nothing is promised",
                )
        return self


class ComputeConfig(Section):
    """How it is computed; none of it is meant to change what is learned."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast over fp32 master weights; auto takes it where the device has it in hardware."""
    device: str = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """``torch.compile`` of the decoder; auto takes it where it has been seen to pay."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class TrainConfig(Section):
    """Everything a run can be told."""

    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    budget: BudgetConfig = BudgetConfig()
    pair: PairConfig = PairConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    compute: ComputeConfig = ComputeConfig()
    seed: int = Field(0, ge=0, lt=2**31)

    def resolve(self, file: Path | None = None, assignments: Sequence[str] = ()) -> TrainConfig:
        """These settings overridden by a TOML file, then by ``section.field=value`` assignments.

        Raises:
            ConfigError: an unknown key, a bad value, a file that is not TOML.
        """
        values = self.model_dump()
        if file is not None:
            _overlay(values, _read_toml(file))
        for assignment in assignments:
            path, found, text = assignment.partition("=")
            if not found:
                raise ConfigError(f"not section.field=value: {assignment!r}")
            value: Any = _parse_value(text.strip())
            for key in reversed(path.strip().split(".")):
                value = {key: value}
            _overlay(values, value)
        return checked(TrainConfig, values)


def checked(kind: type[TrainConfig], values: dict[str, Any]) -> TrainConfig:
    """Validates, turning pydantic's report into one error that names the key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_fault(first), where="settings", remedy=_remedy(first)) from error


def _fault(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: no such setting"
    return f"{key} cannot be {reprlib.repr(error['input'])}"


def _remedy(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"known settings: {', '.join(sorted(_keys(TrainConfig(), '')))}"
    return _takes([str(part) for part in error["loc"]])


def _takes(path: Sequence[str]) -> str:
    """What a setting takes, in words: type, bounds, and whether it may be none."""
    section: Any = TrainConfig
    for name in path[:-1]:
        section = section.model_fields[name].annotation
    field, key = section.model_fields[path[-1]], ".".join(path)
    if isinstance(field.default, BaseModel):
        return f"it is a section, of {', '.join(_keys(field.default, key + '.'))}"
    kinds = get_args(field.annotation) or (field.annotation,)
    words = [_WORDS[kind] for kind in kinds if kind in _WORDS]
    choice = " ".join(words) or f"one of {', '.join(kinds)}"
    bounds = [
        f"{word} {getattr(bound, name):,}"
        for name, word in _BOUNDS.items()
        for bound in field.metadata
        if hasattr(bound, name)
    ]
    none = ", or none" if type(None) in kinds else ""
    return f"{key} takes {' '.join([choice, ' and '.join(bounds)]).strip()}{none}"


def _keys(section: BaseModel, prefix: str) -> list[str]:
    found = []
    for name, value in section:
        inside = _keys(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else []
        found += inside or [prefix + name]
    return found


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read settings: {error}", where=file) from error


def _parse_value(text: str) -> Any:
    if text in ("none", "None", "null"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _overlay(values: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _overlay(values[key], value)
        else:
            values[key] = value

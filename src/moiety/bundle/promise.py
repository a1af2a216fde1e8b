"""What an owner promises about leaks: a guarantee in numbers, and the same in words.

It is the owner's word. Nobody can check it from the weights; the signature says whose word it is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NO_PRIVACY = (
    "Trained without differential privacy. An expert can remember parts of the text it was "
    "trained on; audit it before you send it."
)

OUTSIDE = (
    "how many records there are, which sampling rate and steps follow from",
    "what is measured on held-out text, which stays with the owner",
    "the size of the text as a range, or exact where the owner discloses it",
    "figures of an audit, where the owner shows them",
    "what the owner decided after looking at the text: settings, terms, whether to send this",
    "runs on the same text that are not counted here",
    "rounding of floating-point numbers",
)
"""What the guarantee does not cover, whoever makes it with this software."""

MOST_EPSILON = 10.0
"""Above this a promise bounds practically nothing: what is likelier by a factor of e to the tenth,
about 22,000, with a record than without it still keeps it."""

_Plain = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9 .,:;()+_/-]*$")]
_Positive = Annotated[float, Field(gt=0, le=1e9)]
_Whole = Annotated[int, Field(ge=1, lt=2**53)]


class Guarantee(BaseModel):
    """Differential privacy in numbers. ``tuning_runs`` is None where earlier runs do not count."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    epsilon: _Positive
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: _Plain
    accountant_version: _Plain
    epsilon_rdp: _Positive
    relation: Literal["add or remove one record"]
    record_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None
    max_windows_per_record: _Whole
    window_tokens: _Whole
    sampling: Literal["Poisson"]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    clip_norm: _Positive
    noise_multiplier: _Positive
    steps: _Whole
    table_noise_multiplier: _Positive
    tuning_runs: Annotated[int, Field(ge=0, lt=2**53)] | None
    generator: _Plain
    outside: Annotated[tuple[_Plain, ...], Field(max_length=16)]

    @property
    def unit(self) -> str:
        """What one record is."""
        if self.record_key is None:
            return "one document (equal texts are one)"
        return f"all documents with one {self.record_key}"

    @property
    def bounds_little(self) -> bool:
        """Whether so large an epsilon leaves a promise in name only."""
        return self.epsilon > MOST_EPSILON

    def words(self) -> str:
        """The guarantee for people."""
        runs = "Earlier runs on the same text are not counted."
        if self.tuning_runs is not None:
            runs = f"{self.tuning_runs:,} earlier runs on the same text are counted."
        return (
            f"Trained with differential privacy: epsilon {self.epsilon:.3g} at delta "
            f"{self.delta:.2g} for each record, which is {self.unit}, when one record is added or "
            f"removed. Counted are {self.steps:,} steps and the table of evidence. {runs} "
            f"Outside the guarantee: {'; '.join(self.outside)}."
        )


class PrivacyStatement(BaseModel):
    """What the owner promises about leaks, in words and, where it is a guarantee, in numbers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    differential_privacy: bool
    statement: Annotated[str, Field(max_length=2000)]
    guarantee: Guarantee | None = None

    @model_validator(mode="after")
    def _a_promise_has_numbers(self) -> PrivacyStatement:
        if self.differential_privacy != (self.guarantee is not None):
            raise ValueError("differential privacy is promised exactly where there is a guarantee")
        return self

    @classmethod
    def of(cls, guarantee: Guarantee | None) -> PrivacyStatement:
        """The statement that goes with a run's guarantee, or with none."""
        words = NO_PRIVACY if guarantee is None else guarantee.words()
        return cls(differential_privacy=guarantee is not None, statement=words, guarantee=guarantee)

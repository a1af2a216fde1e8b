"""What is asked of a private run, and what follows from it. Both stand in its ledger."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from moiety.errors import ConfigError, DataError
from moiety.privacy import accountant

_DELTA_SHARE = 0.1
"""The default delta, as a share of one record: far below the chance of publishing one at random."""


class Request(BaseModel):
    """What a run was asked for. Nothing here depends on the text but its number of records."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    clip_norm: float = Field(gt=0)
    max_windows_per_record: int = Field(ge=1)
    table_share: float = Field(gt=0, lt=1)
    tuning_runs: int | None = Field(ge=0)
    records: int = Field(ge=1)
    expected_records: float = Field(gt=0)
    steps: int = Field(ge=1)
    settings_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """All other settings of the run: with others the same noise would hide other steps."""


class PrivacyPlan(BaseModel):
    """The request, and the noise that keeps its promise."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    request: Request
    noise_multiplier: float = Field(gt=0)
    table_noise_multiplier: float = Field(gt=0)

    @classmethod
    def of(cls, request: Request) -> PrivacyPlan:
        """Calibrates the noise: some seconds to half a minute.

        Raises:
            ConfigError: no noise is enough.
        """
        runs = 1 + (request.tuning_runs or 0)
        table = accountant.table_noise(request.table_share * request.epsilon, request.delta, runs)
        noise = accountant.step_noise(
            request.epsilon,
            request.delta,
            rate=request.expected_records / request.records,
            steps=request.steps,
            table_noise=table,
            runs=runs,
        )
        return cls(request=request, noise_multiplier=noise, table_noise_multiplier=table)

    @property
    def sampling_rate(self) -> float:
        """The chance of each record to take part in a step."""
        return self.request.expected_records / self.request.records

    def spent(self) -> accountant.Spent:
        """What the whole run spends, earlier runs that are counted included."""
        return accountant.spent(
            accountant.Mechanisms(
                self.sampling_rate,
                self.noise_multiplier,
                self.request.steps,
                self.table_noise_multiplier,
                1 + (self.request.tuning_runs or 0),
            ),
            self.request.delta,
        )


def resolved_delta(delta: float | None, records: int) -> float:
    """The delta asked for, or a tenth of one record.

    Raises:
        ConfigError: one at which publishing a whole record would count as private.
    """
    if delta is None:
        return _DELTA_SHARE / records
    if delta > 1 / records:
        raise ConfigError(
            f"delta {delta} promises nothing for {records:,} records",
            where="privacy.delta",
            remedy=f"choose at most {_DELTA_SHARE / records:.0e}, or leave it out",
        )
    return delta


def check_expected(expected_records: float, records: int) -> None:
    """Raises ``DataError`` where a step expects more records than there are."""
    if expected_records > records:
        raise DataError(
            f"a step expects {expected_records:,.0f} records, and there are {records:,}",
            remedy="lower batch.windows, or give text of more records",
        )

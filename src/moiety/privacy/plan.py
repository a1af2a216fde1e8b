"""What is asked of a private run, and what follows from it. Both stand in its ledger."""

from __future__ import annotations

from decimal import ROUND_DOWN, Context

from pydantic import BaseModel, ConfigDict, Field

from moiety.errors import ConfigError, DataError
from moiety.privacy import accountant


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

    @property
    def sampling_rate(self) -> float:
        """The chance of each record to take part in a step."""
        return self.expected_records / self.records

    @property
    def runs(self) -> int:
        """This run and those before it that count."""
        return 1 + (self.tuning_runs or 0)

    def words(self) -> str:
        """What was asked for; a delta that was left out is told as that."""
        left_out = self.delta == self.default_delta(self.records)
        whence = f" (left out: a tenth of one over {self.records:,} records)" if left_out else ""
        return f"epsilon {self.epsilon:g} at delta {self.delta:.2g}{whence}"

    def check(self) -> Request:
        """This request, if it can promise anything.

        Raises:
            ConfigError: a delta at which publishing one whole record would count as private.
            DataError: a step expects more records than there are.
        """
        if self.delta > 1 / self.records:
            raise ConfigError(
                f"delta {self.delta} promises nothing for {self.records:,} records",
                where="privacy.delta",
                remedy=f"choose at most {self.most_delta(self.records):g}, better a tenth of it, "
                "or leave it out",
            )
        if self.expected_records > self.records:
            raise DataError(
                f"a step expects {self.expected_records:,.0f} records, there are {self.records:,}",
                remedy="lower batch.windows, or give text of more records",
            )
        return self

    @staticmethod
    def most_delta(records: int) -> float:
        """One over the records in two digits, rounded down so that it may be typed."""
        return float(Context(prec=2, rounding=ROUND_DOWN).create_decimal_from_float(1 / records))

    @staticmethod
    def default_delta(records: int) -> float:
        """A tenth of one record: far below the chance of publishing one at random."""
        return 0.1 / records


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
        share = request.table_share * request.epsilon
        try:
            table = accountant.table_noise(share, request.delta, request.runs)
        except ConfigError as error:
            # Who asked never named the share: say what was asked, and where the share comes from.
            raise ConfigError(
                f"{request.words()} is too little: the table of evidence alone, whose share of "
                f"epsilon is {share:g} (privacy.table_share {request.table_share:g}), would take "
                "more noise than any text outweighs",
                where=error.where,
                remedy=f"{error.remedy}, or give the table a larger share",
            ) from error
        noise = accountant.step_noise(
            request.epsilon,
            request.delta,
            rate=request.sampling_rate,
            steps=request.steps,
            table_noise=table,
            runs=request.runs,
        )
        return cls(request=request, noise_multiplier=noise, table_noise_multiplier=table)

    def spent(self) -> accountant.Spent:
        """What the whole run spends, earlier runs that are counted included."""
        return accountant.spent(
            accountant.Mechanisms(
                self.request.sampling_rate,
                self.noise_multiplier,
                self.request.steps,
                self.table_noise_multiplier,
                self.request.runs,
            ),
            self.request.delta,
        )

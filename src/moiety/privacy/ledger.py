"""What a run has spent, written down before it is spent: a crash can only overstate.

A resumed run repeats the steps since its checkpoint with the same records and the same noise, so
they are the same outputs and are not spent again. That is why the plan may not change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moiety.errors import FormatError, StateError
from moiety.files import canonical_json, parse_json, read_limited, write_atomic
from moiety.privacy.plan import PrivacyPlan, Request
from moiety.privacy.seeds import Secret

LEDGER_FILE = "ledger.json"


class LedgerPaper(BaseModel):
    """``ledger.json``: the plan, and how much of it was charged. Never leaves the owner."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal["moiety.ledger/1"] = "moiety.ledger/1"
    plan: PrivacyPlan
    secret_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    table_charged: bool = False
    steps_charged: int = Field(0, ge=0)


class Ledger:
    """The ledger of one run's folder, and the secret that goes with it."""

    def __init__(self, folder: Path, paper: LedgerPaper, secret: Secret) -> None:
        self.path, self.paper, self.secret = folder / LEDGER_FILE, paper, secret

    @classmethod
    def open(cls, folder: Path, request: Request) -> Ledger:
        """The folder's ledger; a new one, with its noise calibrated, where there is none.

        Raises:
            StateError: it was begun for another request, or with another secret.
            ConfigError: no noise is enough.
        """
        path = folder / LEDGER_FILE
        secret = Secret.open(folder)
        if not path.exists():
            plan = PrivacyPlan.of(request)
            made = cls(folder, LedgerPaper(plan=plan, secret_sha256=secret.digest), secret)
            made._write(made.paper)
            return made
        paper = _read(path)
        if paper.plan.request != request or paper.secret_sha256 != secret.digest:
            raise StateError(
                "this ledger was begun with other settings, other text or another secret",
                where=path,
                remedy="resume with the same ones, or begin a new run",
            )
        return cls(folder, paper, secret)

    def charge_table(self) -> None:
        """Before the table's noise is drawn."""
        self._write(self.paper.model_copy(update={"table_charged": True}))

    def charge_step(self, step: int) -> None:
        """Before the noise of ``step`` (from 0) is drawn.

        Raises:
            StateError: the plan has no such step.
        """
        if step >= self.paper.plan.request.steps:
            raise StateError("a step more than the ledger's plan counts", where=self.path)
        if step >= self.paper.steps_charged:
            self._write(self.paper.model_copy(update={"steps_charged": step + 1}))

    def _write(self, paper: LedgerPaper) -> None:
        write_atomic(self.path, canonical_json(paper.model_dump(mode="json")), private=True)
        self.paper = paper


def _read(path: Path) -> LedgerPaper:
    data = read_limited(path)
    parse_json(data, path)
    try:
        return LedgerPaper.model_validate_json(data)
    except ValidationError as error:
        raise FormatError(f"not a ledger: {error.errors()[0]['msg']}", where=path) from error

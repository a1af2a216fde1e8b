"""What every paper is made of, below ``papers``, so that its parts may stand in files of their own.

``papers`` hands all of this on: other rooms take it from there.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.functional_validators import AfterValidator


class Paper(BaseModel):
    """A part of a paper: frozen, strict, without unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def _check_time(text: str) -> str:
    if not re.fullmatch(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z", text):
        raise ValueError("a UTC time such as 2026-01-31T09:30:00Z")
    datetime.fromisoformat(text)
    return text


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
UtcTime = Annotated[str, AfterValidator(_check_time)]

"""The secret that all of a run's private randomness comes from.

A number is drawn for a *purpose* and a *step*, so a resumed run draws what an uninterrupted one
would, and nothing but the secret has to be kept. Whoever knows it can take the noise away again.
So it comes from the system's own generator, never from ``seed``, and is readable by its owner only.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from moiety.errors import StateError
from moiety.files import read_limited, write_atomic

SECRET_FILE = "noise.secret"
_SECRET_BYTES = 32


@dataclass(frozen=True, repr=False)
class Secret:
    """32 bytes that stay in the run's folder."""

    algorithm: ClassVar[str] = "Philox 4x64, keyed by SHA-256 of a secret, a purpose and a step"
    data: bytes

    @classmethod
    def open(cls, folder: Path) -> Secret:
        """The folder's secret, made when there is none.

        Raises:
            StateError: what is there is no secret.
        """
        path = folder / SECRET_FILE
        if not path.exists():
            write_atomic(path, os.urandom(_SECRET_BYTES), private=True)
        data = read_limited(path, _SECRET_BYTES)
        if len(data) != _SECRET_BYTES:
            raise StateError("the noise's secret is damaged", where=path, remedy="begin a new run")
        return cls(data)

    @property
    def digest(self) -> str:
        """What tells one secret from another without telling it."""
        return hashlib.sha256(b"digest" + self.data).hexdigest()

    def generator(self, purpose: str, step: int = 0) -> np.random.Generator:
        """Independent numbers for each purpose and step; the same ones every time."""
        said = self.data + purpose.encode("utf-8") + b"\0" + step.to_bytes(8, "little")
        key = int.from_bytes(hashlib.sha256(said).digest()[:16], "little")
        return np.random.Generator(np.random.Philox(key=key))

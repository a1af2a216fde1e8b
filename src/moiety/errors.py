"""Every error moiety raises on purpose.

::

    MoietyError                  shown as: what, where, remedy; the command exits with 2
    ├── InputError               something the user gave us is wrong
    │   ├── DataError            text that cannot be read, decoded, parsed or is too little
    │   └── ConfigError          a setting that does not exist, or does not fit another
    ├── StateError               a folder is not in the state the command needs
    └── TrustError               a paper made by somebody else does not hold
        ├── FormatError          the bytes are not a paper this version reads
        ├── SignatureError       not signed, or not by a key we may trust
        ├── IntegrityError       a digest, a size or the set of files is not what was signed
        └── PolicyError          well formed and signed, but not acceptable (norms, terms, anchor)

Anything else that escapes is a bug of ours. Bytes made by somebody else may only ever raise a
``TrustError``: never ``KeyError``, ``UnicodeDecodeError`` or ``MemoryError``.
"""

from __future__ import annotations

from pathlib import Path


class MoietyError(Exception):
    """An expected failure: ``message`` (what), ``where`` (file, line, tensor), ``remedy``."""

    def __init__(
        self, message: str, *, where: str | Path | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = None if where is None else str(where)
        self.remedy = remedy

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        advice = f" ({self.remedy})" if self.remedy else ""
        return f"{self.message}{place}{advice}"


class InputError(MoietyError):
    """Something the user gave us is wrong."""


class DataError(InputError):
    """Text that cannot be read, decoded or parsed, or is too little."""


class ConfigError(InputError):
    """A setting that does not exist, has a bad value, or does not fit another."""


class StateError(MoietyError):
    """A folder is not in the state this command needs (exists already, unfinished, full disk)."""


class TrustError(MoietyError):
    """A paper made by somebody else does not hold; nothing of it may be used."""


class FormatError(TrustError):
    """The bytes are not a paper this version reads."""


class SignatureError(TrustError):
    """Not signed, or not signed by a key that may be trusted here."""


class IntegrityError(TrustError):
    """A digest, a size or the set of files is not what was signed."""


class PolicyError(TrustError):
    """Well formed and signed, but not acceptable: norms, terms, another anchor."""

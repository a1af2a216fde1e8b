"""Composing experts: a release from an anchor and bundles, owners leaving and joining it.

Importing this room imports no torch; only ``load_release`` does, when it is called.
"""

from moiety.merge.exporting import export
from moiety.merge.merging import admit, merge
from moiety.merge.release import load_release, open_release, verify_release
from moiety.merge.withdrawal import verify_receipt_against, withdraw

__all__ = [
    "admit",
    "export",
    "load_release",
    "merge",
    "open_release",
    "verify_receipt_against",
    "verify_release",
    "withdraw",
]

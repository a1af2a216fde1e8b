"""Composing experts: a release from an anchor and bundles, owners leaving and joining it.

Three names of the door are modules:

- ``exporting``   ``export_plain``, ``export_dense``
- ``withdrawal``  ``withdraw``, ``verify_receipt_against``
- ``tuned``       ``check_strict``, ``check_proxies``, ``write_tuned``, ``untune``

Importing this room imports no torch; only ``load_release`` does, when it is called.
"""

from moiety.merge import exporting, tuned, withdrawal
from moiety.merge.merging import admit, merge
from moiety.merge.release import load_release, open_release, verify_release

__all__ = [
    "admit",
    "exporting",
    "load_release",
    "merge",
    "open_release",
    "tuned",
    "verify_release",
    "withdrawal",
]

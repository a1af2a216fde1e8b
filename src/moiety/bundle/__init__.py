"""Signed papers: anchors described, experts packed, signed and verified. Never imports torch.

The door is four modules and four names:

- ``papers``   every paper as a type (``Manifest``, ``Terms``, ``AnchorPaper``, ``RunPaper``, ...)
- ``signing``  ``new_key``, ``load_key``, ``load_public``
- ``anchors``  ``write_anchor_paper``, ``open_anchor``, ``open_facts``, ``verify_anchor``
- ``orders``   ``write_order``, ``verify_order``, ``sign_receipt``, ``verify_receipt``,
               ``write_proxies``, ``verify_proxies``
- ``pack``, ``verify_bundle``, ``verify_manifest``, ``VerifiedBundle``
"""

from moiety.bundle import anchors, orders, papers, signing
from moiety.bundle.manifests import verify_manifest
from moiety.bundle.packing import pack
from moiety.bundle.verify import VerifiedBundle, verify_bundle

__all__ = [
    "VerifiedBundle",
    "anchors",
    "orders",
    "pack",
    "papers",
    "signing",
    "verify_bundle",
    "verify_manifest",
]

"""Signed papers: anchors described, experts packed, signed and verified. Never imports torch.

The door is five modules and three names:

- ``papers``   every paper as a type (``Manifest``, ``Terms``, ``AnchorPaper``, ``RunPaper``, ...)
- ``audits``   an audit's report (``AuditReport``, ...), ``expert_digest``, ``AuditDemand``
- ``signing``  ``new_key``, ``load_key``, ``load_public``
- ``anchors``  ``write_anchor_paper``, ``open_anchor``, ``open_facts``, ``verify_anchor``
- ``orders``   ``write_order``, ``verify_order``, ``sign_receipt``, ``verify_receipt``,
               ``write_proxies``, ``verify_proxies``, ``verify_manifest``
- ``pack``, ``verify_bundle``, ``VerifiedBundle``
"""

from moiety.bundle import anchors, audits, orders, papers, signing
from moiety.bundle.packing import pack
from moiety.bundle.verify import VerifiedBundle, verify_bundle

__all__ = [
    "VerifiedBundle",
    "anchors",
    "audits",
    "orders",
    "pack",
    "papers",
    "signing",
    "verify_bundle",
]

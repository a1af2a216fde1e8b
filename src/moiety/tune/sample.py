"""The anchor's public sample, as both sides of a tuning see it: documents named by their digest."""

from __future__ import annotations

from pathlib import Path

from moiety.bundle import anchors
from moiety.data import Sources
from moiety.errors import IntegrityError
from moiety.files import digest_bytes, digest_file
from moiety.train import jobs

_TOKENIZER = "tokenizer.json"


def open_sample(folder: Path) -> tuple[anchors.Anchor, Sources]:
    """An anchor's folder, and its public sample as a source of text.

    Raises:
        TrustError: not an anchor, or sample or tokenizer are not those its paper describes.
    """
    anchor = anchors.open_anchor(folder)
    for name in (anchors.SAMPLE, _TOKENIZER):
        if digest_file(folder / name) != anchor.paper.files[name].sha256:
            raise IntegrityError("not the file the paper describes", where=folder / name)
    return anchor, jobs.sample_sources(folder)


def document_digest(text: str) -> str:
    """What proxies call a document: the digest of its text."""
    return digest_bytes(text.encode("utf-8"))

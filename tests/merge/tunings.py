"""Tuned releases made without any training: the owners' tables with noise added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.makers import read_arrays

from moiety.bundle import anchors, orders, papers
from moiety.family import ENTRY_MAX, EVIDENCE_TABLE
from moiety.files import digest_bytes
from moiety.merge import tuned


def proxies_paper(anchor: Path, owner: str, **changes: Any) -> papers.Proxies:
    """Proxies of an owner that hold together; the documents named do not exist."""
    facts = anchors.open_facts(anchor)
    said: dict[str, Any] = {
        "owner": owner,
        "anchor": facts.digest,
        "sample_documents": facts.paper.public.documents,
        "documents": tuple(sorted(digest_bytes(word.encode()) for word in ("one", "two"))),
        "accuracy": "over 90 %",
    }
    return papers.Proxies(**(said | changes))


def write_proxies(
    anchor: Path, owner: str, out: Path, key: Path | None = None, **changes: Any
) -> orders.VerifiedProxies:
    """Such proxies as a file, read back."""
    orders.write_proxies(proxies_paper(anchor, owner, **changes), key, out)
    return orders.verify_proxies(out)


def noisy_tables(release: Path, seed: int = 0) -> np.ndarray[Any, Any]:
    """Tables of a release, ``[experts, vocabulary]``, all but the anchor's with noise."""
    rng = np.random.default_rng(seed)
    tables = read_arrays(release / "evidence.safetensors")[EVIDENCE_TABLE]
    tables[1:] += rng.normal(size=tables[1:].shape).astype(np.float32)
    return tables.clip(-ENTRY_MAX, ENTRY_MAX)


def tune(
    release: Path, out: Path, proxies: orders.VerifiedProxies, *, seed: int = 0
) -> tuned.TunedSummary:
    """A tuned release with such tables."""
    return tuned.write_tuned(release, out, noisy_tables(release, seed), [proxies], steps=7)

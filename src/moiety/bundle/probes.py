"""The anchor's probe: public text on which tables of evidence are judged.

Legend: W window, T position.
"""

from __future__ import annotations

from pathlib import Path

from moiety.bundle.papers import AnchorPaper
from moiety.errors import FormatError, IntegrityError
from moiety.tensors import TensorFile, open_tensors

PROBE = "public/probe.safetensors"
"""Where it lies in an anchor's folder."""

TOKENS = "tokens"
"""Windows of public text, int32 [W, T], each the beginning of a document; -1 after its end."""

TOKENS_MAX = 2**20
"""Of all windows together."""


def open_probe(path: Path, paper: AnchorPaper) -> TensorFile:
    """The probe at ``path``, if it is the one of the anchor's paper, and of its sizes.

    Raises:
        IntegrityError: other bytes. FormatError: no tokens of the anchor's.
    """
    claim = paper.files[PROBE]
    probe = open_tensors(path, claim.bytes)
    try:
        if probe.digest_file() != claim.sha256:
            raise IntegrityError("not the probe the anchor's paper describes", where=path)
        _check_tokens(probe, paper.vocab)
    except BaseException:
        probe.close()
        raise
    return probe


def _check_tokens(probe: TensorFile, vocabulary: int) -> None:
    if set(probe.spans) != {TOKENS}:
        raise FormatError("not tokens and nothing else", where=probe.path)
    span = probe.spans[TOKENS]
    if span.dtype != "I32" or len(span.shape) != 2 or min(span.shape) < 1:
        raise FormatError("no tokens", where=probe.path)
    if span.shape[0] * span.shape[1] > TOKENS_MAX:
        raise FormatError("too many tokens", where=probe.path)
    tokens_WT = probe.read(TOKENS)
    if tokens_WT.min() < -1 or tokens_WT.max() >= vocabulary or (tokens_WT[:, 0] < 0).any():
        raise FormatError("no tokens of this anchor", where=f"{probe.path}: {TOKENS}")

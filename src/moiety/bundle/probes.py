"""The anchor's probe: public text and its states, on which tables and rows are judged.

Legend: N state, D width, W window, T position.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moiety.bundle.papers import AnchorPaper
from moiety.errors import FormatError, IntegrityError
from moiety.tensors import TensorFile, open_tensors

PROBE = "public/probe.safetensors"
"""Where it lies in an anchor's folder."""

PROBE_POSITIONS_MAX = 512
PROBE_POSITIONS_MIN = 2
"""One state has no spread."""

TOKENS = "tokens"
"""Windows of public text, int32 [W, T], each the beginning of a document; -1 after its end."""

TOKENS_MAX = 2**20
"""Of all windows together."""

_SPREAD_MIN, _SPREAD_MAX = 1e-6, 1e6
"""Standard deviation of the widest coordinate; a model's states lie between 0.01 and 1,000."""


def open_probe(path: Path, paper: AnchorPaper) -> TensorFile:
    """The probe at ``path``, if it is the one of the anchor's paper, and of its sizes.

    Raises:
        IntegrityError: other bytes. FormatError: not tokens, and states for each layer.
    """
    claim = paper.files[PROBE]
    probe = open_tensors(path, claim.bytes)
    try:
        if probe.digest_file() != claim.sha256:
            raise IntegrityError("not the probe the anchor's paper describes", where=path)
        _check_tokens(probe, paper.vocab)
        for layer in range(paper.num_layers):
            _check_shape(probe, layer, paper.width)
    except BaseException:
        probe.close()
        raise
    return probe


def check_states(probe: TensorFile, paper: AnchorPaper) -> None:
    """Raises ``FormatError`` unless every state is a number and states differ, but not absurdly."""
    for layer in range(paper.num_layers):
        name = states_name(layer)
        states_ND = probe.read(name).astype(np.float64)
        with np.errstate(all="ignore"):
            spread = float(states_ND.std(axis=0).max())
        if not _SPREAD_MIN <= spread <= _SPREAD_MAX:
            raise FormatError(
                f"states with a spread of {spread:.4g}", where=f"{probe.path}: {name}"
            )


def states_name(layer: int) -> str:
    """The states that enter a layer's feed-forward block, float32 ``[N, D]``."""
    return f"layers.{layer}.token"


def _check_tokens(probe: TensorFile, vocabulary: int) -> None:
    span = probe.spans.get(TOKENS)
    if span is None or span.dtype != "I32" or len(span.shape) != 2 or min(span.shape) < 1:
        raise FormatError("no tokens", where=probe.path)
    if span.shape[0] * span.shape[1] > TOKENS_MAX:
        raise FormatError("too many tokens", where=probe.path)
    tokens_WT = probe.read(TOKENS)
    if tokens_WT.min() < -1 or tokens_WT.max() >= vocabulary or (tokens_WT[:, 0] < 0).any():
        raise FormatError("no tokens of this anchor", where=f"{probe.path}: {TOKENS}")


def _check_shape(probe: TensorFile, layer: int, width: int) -> None:
    span = probe.spans.get(states_name(layer))
    if span is None or span.dtype != "F32" or span.shape[1:] != (width,):
        raise FormatError(f"no states for layer {layer}", where=probe.path)
    if not PROBE_POSITIONS_MIN <= span.shape[0] <= PROBE_POSITIONS_MAX:
        raise FormatError("too few or too many positions", where=probe.path)

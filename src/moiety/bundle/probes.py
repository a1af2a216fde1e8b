"""The anchor's probe: states of public text that whiten rows, and on which rows are judged.

Legend: N state, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moiety.bundle.papers import AnchorPaper
from moiety.errors import FormatError, IntegrityError
from moiety.family import ROWS
from moiety.tensors import TensorFile, open_tensors

PROBE = "public/probe.safetensors"
"""Where it lies in an anchor's folder."""

PROBE_POSITIONS_MAX = 512
PROBE_POSITIONS_MIN = 2
"""One state has no spread."""

_SPREAD_MIN, _SPREAD_MAX = 1e-6, 1e6
"""Standard deviation of the widest coordinate; a model's states lie between 0.01 and 1,000."""


def open_probe(path: Path, paper: AnchorPaper) -> TensorFile:
    """The probe at ``path``, if it is the one of the anchor's paper, and of its sizes.

    Raises:
        IntegrityError: other bytes. FormatError: not one tensor of each kind for each layer.
    """
    claim = paper.files[PROBE]
    probe = open_tensors(path, claim.bytes)
    try:
        if probe.digest_file() != claim.sha256:
            raise IntegrityError("not the probe the anchor's paper describes", where=path)
        for layer in range(paper.num_layers):
            for kind in ROWS:
                _check_shape(probe, layer, kind, paper.width)
    except BaseException:
        probe.close()
        raise
    return probe


def check_states(probe: TensorFile, paper: AnchorPaper) -> None:
    """Raises ``FormatError`` unless every state is a number and states differ, but not absurdly."""
    for layer in range(paper.num_layers):
        for kind in ROWS:
            name = f"layers.{layer}.{kind}"
            states_ND = probe.read(name).astype(np.float64)
            with np.errstate(all="ignore"):
                spread = float(states_ND.std(axis=0).max())
            if not _SPREAD_MIN <= spread <= _SPREAD_MAX:
                raise FormatError(
                    f"states with a spread of {spread:.4g}", where=f"{probe.path}: {name}"
                )


def _check_shape(probe: TensorFile, layer: int, kind: str, width: int) -> None:
    span = probe.spans.get(f"layers.{layer}.{kind}")
    if span is None or span.dtype != "F32" or span.shape[1:] != (width,):
        raise FormatError(f"no probe {kind} for layer {layer}", where=probe.path)
    if not PROBE_POSITIONS_MIN <= span.shape[0] <= PROBE_POSITIONS_MAX:
        raise FormatError("too few or too many positions", where=probe.path)

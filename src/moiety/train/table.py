"""An expert's table: how much more frequent each token is in the owner's text than in public text.

Legend: V vocabulary.

What leaves the owner in it are rounded frequencies of tokens, never which document holds them. A
token of fewer than ``LEAST_RECORDS`` records counts as absent, so a name that one patient bears is
not told.
"""

from __future__ import annotations

import math
import statistics
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moiety.data import PackedText
from moiety.errors import DataError
from moiety.family import ENTRY_MAX
from moiety.privacy import Ledger, histogram_length, noisy_histogram

LEAST_RECORDS = 5
"""Records that must hold a token for it to count."""

SMOOTHING_TOKENS = 1000
"""Public text that every owner's frequencies are mixed with, so that a token which little text
happens to lack is not evidence against it."""

_STEP = 1 / 64
_SEEN_PUBLIC = 4096

Floats = npt.NDArray[np.float64]


def evidence_table(own: PackedText, public: PackedText, vocabulary: int) -> Tensor:
    """log(frequency in own text / frequency in public text) of each token, ``[V]``, float32.

    The separator, which begins every document, says nothing.

    Raises:
        DataError: no token is held by enough records, so the table would be empty.
    """
    own_counts_V = own.token_counts(vocabulary, LEAST_RECORDS)
    if not own_counts_V.any():
        raise DataError(
            f"no token is held by {LEAST_RECORDS} records: nothing may be told of this text",
            where=own.folder,
            remedy="give text of more records, or as more documents (one a JSON line)",
        )
    public_V = _public_frequencies(public, vocabulary)
    return _entries(own_counts_V + SMOOTHING_TOKENS * public_V, public_V, own.separator)


def private_table(own: PackedText, public: PackedText, vocabulary: int, ledger: Ledger) -> Tensor:
    """The same by a mechanism that is differentially private per record, ``[V]``, float32.

    Each record's counts are clipped to the length that half of the public documents do not reach,
    and every sum gets Gaussian noise. Tokens that do not rise over the highest noise to be expected
    are told as one: what is left of the owner's text is spread over them as public text is. Public
    text that outweighs the noise of all counts together is mixed in.
    """
    lengths = [histogram_length(tokens) for tokens in islice(public.record_tokens(), _SEEN_PUBLIC)]
    clip_norm = max(1.0, statistics.median(lengths))
    deviation = ledger.paper.plan.table_noise_multiplier * clip_norm
    ledger.charge_table()
    noisy_V = noisy_histogram(
        own.record_tokens(),
        vocabulary,
        clip_norm=clip_norm,
        deviation=deviation,
        generator=ledger.secret.generator("table"),
    )
    public_V = _public_frequencies(public, vocabulary)
    hidden_V = noisy_V <= deviation * math.sqrt(2 * math.log(vocabulary))
    rest = max(0.0, float(noisy_V[hidden_V].sum())) / max(1e-12, float(public_V[hidden_V].sum()))
    smoothing = max(SMOOTHING_TOKENS, deviation * math.sqrt(vocabulary))
    own_V = np.where(hidden_V, rest * public_V, noisy_V) + smoothing * public_V
    return _entries(own_V, public_V, own.separator)


def _public_frequencies(public: PackedText, vocabulary: int) -> Floats:
    counts_V = public.token_counts(vocabulary) + 1.0
    public_V: Floats = counts_V / counts_V.sum()
    return public_V


def _entries(own_V: Floats, public_V: Floats, separator: int) -> Tensor:
    table_V = np.clip(np.log(own_V / own_V.sum() / public_V), -ENTRY_MAX, ENTRY_MAX)
    table_V[separator] = 0.0
    return torch.from_numpy(np.round(table_V / _STEP) * _STEP).float()

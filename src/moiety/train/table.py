"""An expert's table: how much more frequent each token is in the owner's text than in public text.

Legend: V vocabulary.

What leaves the owner in it are rounded frequencies of tokens, never which document holds them. A
token of fewer than ``LEAST_RECORDS`` records counts as absent, so a name that one patient bears is
not told.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from moiety.data import PackedText
from moiety.errors import DataError
from moiety.family import ENTRY_MAX

LEAST_RECORDS = 5
"""Records that must hold a token for it to count."""

SMOOTHING_TOKENS = 1000
"""Public text that every owner's frequencies are mixed with, so that a token which little text
happens to lack is not evidence against it."""

_STEP = 1 / 64


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
    public_V = public.token_counts(vocabulary) + 1.0
    public_V /= public_V.sum()
    own_V = own_counts_V + SMOOTHING_TOKENS * public_V
    own_V /= own_V.sum()
    table_V = np.clip(np.log(own_V / public_V), -ENTRY_MAX, ENTRY_MAX)
    table_V[own.separator] = 0.0
    return torch.from_numpy(np.round(table_V / _STEP) * _STEP).float()

"""What is measured of tensors nobody trusts: digest and norm in one pass, products, captures.

All of it in small blocks, which stay in the cache of a core, and numpy alone. SHA-256
and dot products release the interpreter lock, so two threads really are two.

Dimensions: D width, R rank, W probe window, T position, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from moiety.errors import IntegrityError, PolicyError
from moiety.family import WITNESSES
from moiety.tensors import ITEM_BYTES, TensorFile, decode

_THREADS = 2
_WORTH_THREADS_BYTES = 8 * 2**20
_BLOCK_BYTES = 2**16
_SLAB_COLUMNS = 4096

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """One tensor: SHA-256 of its bytes, Frobenius norm of its values."""

    sha256: str
    norm: float


def in_threads(
    work: Callable[[Job], Result], jobs: Iterable[Job], num_bytes: int = _WORTH_THREADS_BYTES
) -> list[Result]:
    """``work`` on every job by two threads; results, and the first failure, in the jobs' order.

    When there are few bytes to read, this thread does it sooner alone.
    """
    if num_bytes < _WORTH_THREADS_BYTES:
        return [work(job) for job in jobs]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, jobs))


def measure_tensor(tensors: TensorFile, name: str, *, exact: bool = False) -> Measured:
    """Digest and norm of a floating tensor.

    ``exact`` sums in float64, so that every machine gets the same leading digits.

    Raises:
        PolicyError: a value is NaN, infinite, or so large that its square is.
    """
    span = tensors.spans[name]
    wide = np.float64 if exact else np.float32
    state, squares = hashlib.sha256(), 0.0
    for block in tensors.blocks(name, _BLOCK_BYTES):
        state.update(block)
        if len(block) % ITEM_BYTES[span.dtype]:
            raise IntegrityError("the file became shorter while it was read", where=tensors.path)
        values = decode(block, span.dtype).astype(wide, copy=False)
        with np.errstate(all="ignore"):
            squares += float(np.dot(values, values))
        if not math.isfinite(squares):
            raise PolicyError(
                "holds a value that is NaN, infinite or absurdly large",
                where=f"{tensors.path}: {name}",
            )
    return Measured(state.hexdigest(), math.sqrt(squares))


def product_norm(tensors: TensorFile, out_name: str, in_name: str) -> float:
    """Frobenius norm of ``out @ in`` without the product: sqrt(trace(outᵀout · in inᵀ)).

    Needs the memory of one factor and of two [R, R] matrices in float64.
    """
    in_RD = tensors.read(in_name)
    rank = in_RD.shape[0]
    gram_in = np.zeros((rank, rank))
    for at in range(0, in_RD.shape[1], _SLAB_COLUMNS):
        slab = in_RD[:, at : at + _SLAB_COLUMNS].astype(np.float64)
        gram_in += slab @ slab.T
    gram_out = np.zeros((rank, rank))
    out_DR = tensors.read(out_name)
    for at in range(0, out_DR.shape[0], _SLAB_COLUMNS):
        slab = out_DR[at : at + _SLAB_COLUMNS].astype(np.float64)
        gram_out += slab.T @ slab
    # Both are symmetric, so the trace of their product is the sum of elementwise products;
    # rounding may leave a true zero slightly negative.
    return math.sqrt(max(0.0, float(np.sum(gram_out * gram_in))))


def share_by_evidence(tokens_WT: np.ndarray[Any, Any], table_V: np.ndarray[Any, Any]) -> float:
    """The share of public text that a table of evidence would take from the anchor.

    ``tokens_WT``: windows that begin documents, -1 after a document's end. The logits are those of
    ``moiety.model``'s evidence.
    """
    real_WT = tokens_WT >= 0
    scores_WT = np.where(real_WT, table_V.astype(np.float64)[np.maximum(tokens_WT, 0)], 0.0)
    seen_T = np.arange(1, tokens_WT.shape[1] + 1)
    logits_WT = scores_WT.cumsum(axis=1) * WITNESSES / (seen_T + WITNESSES)
    return float(np.mean(0.5 * (1.0 + np.tanh(0.5 * logits_WT[real_WT]))))

"""Norms, products and captured shares against the naive computation."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.makers import read_arrays, write_arrays

from moiety.bundle.measure import (
    in_threads,
    measure_tensor,
    product_norm,
    share_by_evidence,
)
from moiety.tensors import array_plan, encode, open_tensors, write_tensors


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("shape", [(1,), (7, 13), (2100, 1100)])
@pytest.mark.parametrize("exact", [True, False])
def test_digest_and_norm(tmp_path: Path, dtype: str, shape: tuple[int, ...], exact: bool) -> None:
    array = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    path = tmp_path / "x.safetensors"
    write_tensors(path, [array_plan("pad", np.ones(3, np.float32)), array_plan("x", array, dtype)])
    stored = read_arrays(path)["x"].astype(np.float64)
    with open_tensors(path) as tensors:
        measured = measure_tensor(tensors, "x", exact=exact)
    assert measured.sha256 == hashlib.sha256(encode(array, dtype)).hexdigest()
    assert math.isclose(
        measured.norm, math.sqrt((stored**2).sum()), rel_tol=1e-12 if exact else 1e-4
    )


@given(
    rank=st.integers(1, 6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_a_products_norm_needs_no_product(
    tmp_path_factory: pytest.TempPathFactory, rank: int, rows: int, columns: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    factors = _factors(rng, rank, rows, columns)
    path = tmp_path_factory.mktemp("factors") / "x.safetensors"
    _compare(path, factors)


def test_a_products_norm_over_several_slabs(tmp_path: Path) -> None:
    factors = _factors(np.random.default_rng(5), rank=3, rows=9000, columns=4097)
    _compare(tmp_path / "x.safetensors", factors)


def test_orthogonal_factors_have_no_product(tmp_path: Path) -> None:
    factors = {
        "in": np.array([[1, 2], [0, 0]], np.float32),
        "out": np.array([[0, 5], [0, 7]], np.float32),
    }
    _compare(tmp_path / "x.safetensors", factors)


def _factors(
    rng: np.random.Generator, rank: int, rows: int, columns: int
) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "in": rng.normal(size=(rank, columns)).astype(np.float32),
        "out": rng.normal(size=(rows, rank)).astype(np.float32),
    }


def _compare(path: Path, factors: dict[str, np.ndarray[Any, Any]]) -> None:
    write_arrays(path, factors)
    dense = factors["out"].astype(np.float64) @ factors["in"].astype(np.float64)
    with open_tensors(path) as tensors:
        found = product_norm(tensors, "out", "in")
    assert math.isclose(found, float(np.linalg.norm(dense)), rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_by_evidence_is_a_count_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, size=(6, 40)).astype(np.int32)
    table = rng.normal(0.2, 1.0, size=50).astype(np.float32)
    shares = []
    for window, length in zip(tokens, [40, 1, 7, 39, 40, 12], strict=True):
        window[length:] = -1
        total = 0.0
        for seen, token in enumerate(window[:length], start=1):
            total += float(table[token])
            shares.append(1 / (1 + math.exp(-total * 16 / (seen + 16))))
    assert math.isclose(share_by_evidence(tokens, table), sum(shares) / len(shares), rel_tol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_by_evidence_is_what_a_model_would_give_each_token(seed: int) -> None:
    """Oracle: the logits of ``moiety.model``, one window at a time, cut where the document ends."""
    torch = pytest.importorskip("torch")
    from moiety.model import evidence

    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, size=(6, 40)).astype(np.int32)
    lengths = [40, 1, 7, 39, 40, 12]
    table = rng.normal(0.2, 1.0, size=50).astype(np.float32)
    shares: list[float] = []
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = -1
        scores = torch.from_numpy(table[row[:length]])
        shares += evidence(scores[None, :, None])[0, :, 0].sigmoid().tolist()
    expected = sum(shares) / len(shares)
    assert math.isclose(share_by_evidence(tokens, table), expected, rel_tol=1e-6)


def test_the_share_by_evidence_has_ends() -> None:
    tokens = np.full((2, 4096), 3, np.int32)
    for entry, share in ((4.0, 1.0), (0.0, 0.5), (-4.0, 0.0)):
        table = np.full(5, entry, np.float32)
        assert math.isclose(share_by_evidence(tokens, table), share, abs_tol=1e-4)


def test_threads_give_results_and_the_first_failure_in_order() -> None:
    seen = set()

    def work(number: int) -> int:
        seen.add(threading.get_ident())
        if number >= 90:
            raise KeyError(number)
        return number * number

    assert in_threads(work, range(90)) == [n * n for n in range(90)]
    assert threading.get_ident() not in seen
    assert in_threads(work, range(90), num_bytes=10) == [n * n for n in range(90)]
    with pytest.raises(KeyError, match="90"):
        in_threads(work, range(200))

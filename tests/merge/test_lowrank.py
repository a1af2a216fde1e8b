from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import IntegrityError, PolicyError
from moiety.merge.lowrank import Source, converted, materialised
from moiety.tensors import TensorFile, array_plan, decode, encode, open_tensors, write_tensors

EPSILON = {"F32": 2.0**-24, "BF16": 2.0**-8, "F16": 2.0**-11}


def write_factors(
    path: Path, rows: int, columns: int, rank: int, dtype: str = "F32", scale: float = 1.0
) -> TensorFile:
    rng = np.random.default_rng([rows, columns, rank])
    shapes = {"anchor": (rows, columns), "in": (rank, columns), "out": (rows, rank)}
    plans = []
    for name, shape in shapes.items():
        array = (rng.normal(size=shape) * scale).astype(np.float32)
        plans.append(array_plan(name, array, dtype if name == "anchor" else "F32"))
    write_tensors(path, plans)
    return open_tensors(path)


def source(file: TensorFile, name: str) -> Source:
    return Source(file, name, file.digest(name))


def result(file: TensorFile, row_block_bytes: int = 2**19) -> bytes:
    parts = (source(file, "anchor"), source(file, "in"), source(file, "out"))
    piece = materialised(*parts, "w", row_block_bytes=row_block_bytes)
    return b"".join(bytes(block) for block in piece.blocks())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(1, 1, 1), (33, 17, 5), (64, 128, 16)])
def test_close_to_the_float64_product(
    tmp_path: Path, dtype: str, rows: int, columns: int, rank: int
) -> None:
    with write_factors(tmp_path / "f", rows, columns, rank, dtype) as file:
        got = decode(result(file), dtype).reshape(rows, columns).astype(np.float64)
        parts = {name: file.read(name).astype(np.float64) for name in ("anchor", "in", "out")}
    exact = parts["anchor"] + parts["out"] @ parts["in"]
    # Rank sums rounded in float32, one more for the anchor, one for the dtype.
    size = np.abs(parts["out"]) @ np.abs(parts["in"])
    bound = (rank + 2) * EPSILON["F32"] * (size + np.abs(exact)) + EPSILON[dtype] * np.abs(exact)
    assert (np.abs(got - exact) <= bound * 1.01).all()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 9),
    block_bytes=st.integers(1, 5000),
)
def test_bits_do_not_depend_on_the_size_of_row_blocks(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, rank: int, block_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("factors") / "f"
    with write_factors(path, rows, columns, rank) as file:
        assert result(file, block_bytes) == result(file, 10**9)


def test_bits_are_those_of_the_naive_loop(tmp_path: Path) -> None:
    with write_factors(tmp_path / "f", 6, 7, 4) as file:
        anchor, inner, outer = (file.read(name) for name in ("anchor", "in", "out"))
        got = decode(result(file), "F32").reshape(6, 7)
    for i in range(6):
        for j in range(7):
            total = np.float32(0)
            for r in range(4):
                total = np.float32(total + np.float32(outer[i, r] * inner[r, j]))
            assert got[i, j] == np.float32(anchor[i, j] + total)


@pytest.mark.parametrize("changed", ["anchor", "in", "out"])
def test_a_source_that_changed_is_refused(tmp_path: Path, changed: str) -> None:
    with write_factors(tmp_path / "f", 4, 4, 2) as file:
        parts = {name: source(file, name) for name in ("anchor", "in", "out")}
        parts[changed] = Source(file, changed, hashlib.sha256(b"else").hexdigest())
        piece = materialised(parts["anchor"], parts["in"], parts["out"], "w")
        with pytest.raises(IntegrityError, match="changed since"):
            list(piece.blocks())


def test_a_sum_too_large_for_the_dtype_is_refused(tmp_path: Path) -> None:
    with (
        write_factors(tmp_path / "f", 8, 8, 4, "F16", scale=300.0) as file,
        pytest.raises(PolicyError, match="not finite"),
    ):
        result(file)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_conversion_rounds_as_torch_does(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(5).normal(size=(50, 21)).astype(np.float32)
    values[0, :4] = [0.0, -0.0, 1.0 + 2.0**-9, 1.0 + 3 * 2.0**-9]  # zeros and ties
    write_tensors(tmp_path / "f", [array_plan("t", values)])
    with open_tensors(tmp_path / "f") as file:
        piece = converted(source(file, "t"), "u", dtype)
        got = b"".join(bytes(block) for block in piece.blocks())
    kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    expected = torch.from_numpy(values).to(kinds[dtype]).contiguous()
    assert got == expected.view(torch.uint8).numpy().tobytes()
    assert (piece.name, piece.dtype, piece.shape) == ("u", dtype, (50, 21))


@pytest.mark.parametrize(("value", "dtype"), [(1e6, "F16"), (3.4e38, "BF16")])
def test_a_value_too_large_for_the_dtype_is_refused(
    tmp_path: Path, value: float, dtype: str
) -> None:
    write_tensors(tmp_path / "f", [array_plan("t", np.full((2, 2), value, np.float32))])
    with open_tensors(tmp_path / "f") as file:
        piece = converted(source(file, "t"), "u", dtype)
        with pytest.raises(PolicyError, match="not finite"):
            list(piece.blocks())


def test_conversion_in_several_blocks_is_the_conversion_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(6).normal(size=(37, 11)).astype(np.float32)
    write_tensors(tmp_path / "f", [array_plan("t", values)])
    monkeypatch.setattr("moiety.merge.lowrank.BLOCK_BYTES", 64)
    with open_tensors(tmp_path / "f") as file:
        blocks = list(converted(source(file, "t"), "u", "BF16").blocks())
    assert len(blocks) > 10
    assert b"".join(bytes(block) for block in blocks) == encode(values, "BF16")

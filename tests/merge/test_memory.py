"""Memory does not grow with the model: tensors are streamed, whatever their number and size."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import bench_merge

SMALL = 0.02


def growth_megabytes(folder: Path, gigabytes: float, rank: int | None, dtype: str) -> float:
    sizes = bench_merge.sizes_for(gigabytes, dtype)
    anchor = bench_merge.make_big_anchor(folder / "anchor", sizes)
    bundles = [
        bench_merge.make_big_bundle(folder, anchor, owner, rank, dtype)
        for owner in bench_merge.OWNERS[:2]
    ]
    found = bench_merge.measure_merge(anchor, bundles, folder / "release", cold=False)
    return float(found["peak"] - found["idle"]) / 1e6


def test_a_small_merge_stays_small(tmp_path: Path) -> None:
    assert growth_megabytes(tmp_path, SMALL, None, "BF16") < 100


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 16])
def test_a_model_of_many_tensors_needs_no_more_memory(tmp_path: Path, rank: int | None) -> None:
    assert growth_megabytes(tmp_path, 0.3, rank, "BF16") < 150

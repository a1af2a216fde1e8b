from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from moiety.errors import IntegrityError
from moiety.merge.streaming import Piece, copied, run_jobs, write_shards
from moiety.tensors import TensorPlan, array_plan, open_tensors, write_tensors

RNG = np.random.default_rng(0)
ARRAYS = {f"t{n}": RNG.normal(size=(3 + n, 5)).astype(np.float32) for n in range(7)}


def pieces(cut: int) -> list[Piece]:
    def blocks(array: np.ndarray[Any, Any]) -> list[bytes]:
        data = array.tobytes()
        return [data[at : at + cut] for at in range(0, len(data), cut)]

    return [
        Piece(name, "F32", array.shape, lambda array=array: blocks(array))
        for name, array in ARRAYS.items()
    ]


@pytest.mark.parametrize("cut", [1, 7, 10**6])
def test_the_same_bytes_as_the_plain_writer(tmp_path: Path, cut: int) -> None:
    plain = write_tensors(tmp_path / "plain", [array_plan(n, a) for n, a in ARRAYS.items()])
    written = write_shards(tmp_path, {"fast": pieces(cut)})["fast"]
    data = (tmp_path / "fast").read_bytes()
    assert data == (tmp_path / "plain").read_bytes()
    assert dict(written.tensors) == plain
    assert written.num_bytes == len(data)
    payload = sum(array.nbytes for array in ARRAYS.values())
    assert written.header == hashlib.sha256(data[: len(data) - payload]).hexdigest()


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": pieces(11)})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_a_tensor_that_changed_since_it_was_verified_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "source", [array_plan("t", ARRAYS["t0"])])
    with open_tensors(tmp_path / "source") as file:
        digest = file.digest("t")
        with (tmp_path / "source").open("r+b") as writer:
            writer.seek(-1, 2)
            writer.write(b"\x77")
        with pytest.raises(IntegrityError, match="changed since"):
            write_shards(tmp_path, {"out": [copied(file, "t", "u", digest)]})


@pytest.mark.parametrize("sizes", [(59,), (61,), (60, 1), ()])
def test_too_few_or_too_many_bytes_are_refused(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    piece = Piece("t", "F32", (15,), lambda: [bytes(size) for size in sizes])
    with pytest.raises(IntegrityError, match="bytes for a tensor of 60"):
        write_shards(tmp_path, {"out": [piece]})


def test_an_empty_list_of_shards_is_no_work(tmp_path: Path) -> None:
    assert write_shards(tmp_path, {}) == {}


def test_progress_ends_at_the_total_and_never_goes_back(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_shards(tmp_path, {"a": pieces(9)}, lambda done, total: seen.append((done, total)))
    total = sum(array.nbytes for array in ARRAYS.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


def test_the_first_failure_in_the_jobs_order_is_the_one_that_is_told() -> None:
    def fail(number: int) -> None:
        raise ValueError(str(number))

    stop = threading.Event()
    with pytest.raises(ValueError, match=r"^0$"):
        run_jobs([lambda n=n: fail(n) for n in range(5)], stop)
    assert stop.is_set()


def test_plans_and_pieces_agree_on_sizes() -> None:
    for shape, dtype in (((3, 4), "F32"), ((5,), "BF16"), ((2, 0), "F16")):
        assert (
            Piece("t", dtype, shape, list).num_bytes == TensorPlan("t", dtype, shape, ()).num_bytes
        )

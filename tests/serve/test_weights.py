"""Weights of a server are its own memory: files that change under it change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests import makers
from tests.serve.asking import answers, ask, engine, tokens

from moiety.merge import load_release, merge

PROMPTS = [ask((0, 3, 4, 5), slots=slots) for slots in ((0, 1), (0, 2), (0, 1, 2))]


@pytest.fixture(params=["F32", "BF16"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A release of a whole expert and a low-rank one."""
    anchor = makers.make_anchor(tmp_path / "anchor", dtype=request.param)
    amy = makers.make_bundle(tmp_path, anchor, "amy", seed=1)
    bob = makers.make_bundle(tmp_path, anchor, "bob", seed=2, rank=2)
    merge(anchor, [amy, bob], tmp_path / "release")
    return tmp_path / "release"


def test_files_that_are_written_over_or_cut_change_no_answer(folder: Path) -> None:
    with engine(load_release(folder)) as running:
        before = [tokens(answer) for answer in answers(running, PROMPTS)]
        assert str(folder) not in Path("/proc/self/maps").read_text()
        for path in folder.glob("*.safetensors"):
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.write(b"\xff" * size)
            path.write_bytes(b"")
        assert [tokens(answer) for answer in answers(running, PROMPTS)] == before


def test_what_was_removed_is_zero_in_memory_and_nothing_else_is(folder: Path) -> None:
    with engine(load_release(folder)) as running:
        alone = [tokens(answer) for answer in answers(running, [ask((0, 3), slots=(0,))])]
        held = [
            block.experts[slot] for block in running._stepper._decoder._blocks for slot in (1, 2)
        ]
        assert all(one.any() for expert in held for one in weights(expert))
        running.remove([1, 2])
        assert not any(one.any() for expert in held for one in weights(expert))
        assert not running._stepper._routing.table_SV.any()
        shutil.rmtree(folder)
        assert [tokens(answer) for answer in answers(running, [ask((0, 3), slots=(0,))])] == alone


def test_an_engine_that_is_closed_forgets_all_the_same(folder: Path) -> None:
    with engine(load_release(folder)) as running:
        held = [block.experts[1] for block in running._stepper._decoder._blocks]
        running.close()
        running.remove([1])
        assert not any(one.any() for expert in held for one in weights(expert))


def weights(expert) -> list[torch.Tensor]:
    """The matrices of an expert's own."""
    if hasattr(expert, "down"):
        packed = [expert.gate_up._weight_OI, expert.down._weight_OI]
        return [one.to_dense() if one.layout == torch._mkldnn else one for one in packed]
    return [one for delta in (expert._gate, expert._up, expert._down) for one in delta.parameters()]

"""One expert as a dense model: its very matrices, and a checkpoint that stock loaders load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests import makers
from tests.merge.worlds import RANKS, World
from transformers import AutoModelForCausalLM

from moiety.errors import PolicyError
from moiety.family import MATRICES, OLMO2, delta_in, delta_out, weight
from moiety.merge import exporting


@pytest.mark.parametrize("name", ["anchor", "amy", "bob"])
def test_an_export_is_the_dense_model_with_the_experts_matrices(
    world: World, whole: Path, tmp_path: Path, name: str
) -> None:
    """Oracle: the matrices of anchor and bundle, a low-rank expert's summed up in float64."""
    exporting.export_dense(whole, name, tmp_path / "dense")
    anchor = makers.read_arrays(world.anchor / "model-00001-of-00002.safetensors")
    anchor |= makers.read_arrays(world.anchor / "model-00002-of-00002.safetensors")
    got = makers.read_arrays(tmp_path / "dense" / "model.safetensors")
    for layer in range(2):
        for matrix in MATRICES:
            mine = got.pop(OLMO2.dense(layer, matrix))
            public = anchor.pop(OLMO2.dense(layer, matrix))
            if name == "anchor":
                assert np.array_equal(mine, public)
                continue
            held = makers.read_arrays(world.bundles[name] / "expert.safetensors")
            if RANKS[name] is None:
                assert np.array_equal(mine, held[weight(layer, matrix)])
                continue
            outer, inner = held[delta_out(layer, matrix)], held[delta_in(layer, matrix)]
            summed = public + outer.astype(np.float64) @ inner.astype(np.float64)
            np.testing.assert_allclose(mine, summed, rtol=1e-6, atol=1e-7)
    assert got.keys() == anchor.keys()
    assert all(np.array_equal(got[name], anchor[name]) for name in got)


@pytest.mark.parametrize("name", ["anchor", "amy", "bob"])
def test_transformers_loads_it_without_a_missing_or_unexpected_tensor(
    world: World, whole: Path, tmp_path: Path, name: str
) -> None:
    exporting.export_dense(whole, name, tmp_path / "dense")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", output_loading_info=True, dtype="auto"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == OLMO2.dense_class
    if name == "anchor":
        anchor = AutoModelForCausalLM.from_pretrained(world.anchor, dtype="auto")
        tokens = torch.arange(10)[None]
        assert torch.equal(model(tokens).logits, anchor(tokens).logits)


def test_an_export_of_nobody_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no expert called 'eve'"):
        exporting.export_dense(whole, "eve", tmp_path / "out")

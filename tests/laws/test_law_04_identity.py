"""Law 4: copies of the anchor compute the anchor; one expert's export is its dense model."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests import makers, tiny
from transformers import AutoModelForCausalLM

from moiety import family
from moiety.merge import exporting, load_release, merge
from moiety.model import load_dense

OWNERS = tuple(tiny.RANKS)


def copy_of_the_anchor(world, rank, seed):
    """Matrices that are the anchor's (full), or a delta of nothing (low-rank); a random table."""
    arrays = tiny.expert_arrays(world.anchor, rank, seed)
    base = world.matrices("anchor")
    for layer, name in base:
        if rank is None:
            arrays[family.weight(layer, name)] = base[layer, name].numpy()
        else:
            arrays[family.delta_out(layer, name)] *= 0
    return arrays


@pytest.fixture(scope="module")
def copies(tiny_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    return [
        tiny.make_bundle(
            folder, tiny_world.anchor, f"copy-{n}", copy_of_the_anchor(tiny_world, rank, n)
        )
        for n, rank in enumerate((None, 2, None))
    ]


def anchor_logits(world, tokens):
    with torch.inference_mode():
        return load_dense(world.anchor)(input_ids=tokens).logits


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_copies_of_the_anchor_compute_the_anchor(tiny_world, copies, tmp_path, count):
    merge(tiny_world.anchor, copies[:count], tmp_path / "release")
    tokens = tiny.random_tokens(3, 40)
    found = tiny.logits_of(load_release(tmp_path / "release"), tokens)
    torch.testing.assert_close(found, anchor_logits(tiny_world, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("owner", ["anchor", *OWNERS])
def test_an_export_is_the_dense_model_with_the_owners_matrices(tiny_world, tmp_path, owner):
    exporting.export_dense(tiny_world.release(*OWNERS), owner, tmp_path / "dense")
    ours, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", output_loading_info=True
    )
    assert {name: list(found) for name, found in report.items() if found} == {}
    oracle = load_dense(tiny_world.anchor)
    with torch.no_grad():
        for (layer, name), matrix in tiny_world.matrices(owner).items():
            getattr(oracle.model.layers[layer].mlp, name).weight.copy_(matrix)
    tokens = tiny.random_tokens(3, 40)
    with torch.inference_mode():
        expected = oracle(input_ids=tokens).logits
        found = ours.eval()(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("owner", OWNERS)
def test_an_export_is_the_mixture_whose_router_takes_that_expert(tiny_world, tmp_path, owner):
    exporting.export_dense(tiny_world.release(*OWNERS), owner, tmp_path / "dense")
    mixture = tiny_world.load(*OWNERS)
    # Evidence so loud that no number is left for the others.
    mixture.routing.table_SV[mixture.names.index(owner)] = 1e4
    tokens = tiny.random_tokens(3, 40)
    with torch.inference_mode():
        expected = load_dense(tmp_path / "dense")(input_ids=tokens).logits
    torch.testing.assert_close(tiny.logits_of(mixture, tokens), expected, rtol=1e-5, atol=1e-5)
    assert (expected - anchor_logits(tiny_world, tokens)).abs().max() > 0.05


def test_the_anchors_export_is_the_anchors_own_tensors(tiny_world, tmp_path):
    exporting.export_dense(tiny_world.release(*OWNERS), "anchor", tmp_path / "dense")
    found = {}
    for path in (tmp_path / "dense").glob("*.safetensors"):
        found |= load_file(path)
    expected = makers.read_arrays(tiny_world.anchor / "model.safetensors")
    assert sorted(found) == sorted(expected)
    assert [n for n in found if not (found[n].numpy() == expected[n]).all()] == []

"""A view is what its adversary holds, and nothing else of the model."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from moiety.audit.views import views_of
from moiety.errors import ConfigError


def test_the_views_of_an_owner_are_those_of_masks(tiny_world: tiny.World) -> None:
    mixture = tiny_world.load("amy", "bob", "cat")
    tokens = tiny.random_tokens(2, 20)
    everybody = ("amy", "bob", "cat")
    masks = {"anchor": (), "pair": ("bob",), "release": everybody, "withdrawn": ("amy", "cat")}
    views = {view.name: view for view in views_of(mixture, "bob")}
    assert list(views) == ["anchor", "expert", "pair", "release", "withdrawn"]
    for name, experts in masks.items():
        with mixture.only(*experts):
            expected = tiny.logits_of(mixture, tokens)
        with views[name].using() as held:
            assert torch.equal(tiny.logits_of(held, tokens), expected)


def test_the_expert_alone_is_a_dense_model_of_its_blocks(tiny_world: tiny.World) -> None:
    mixture = tiny_world.load("amy", "bob")
    tokens = tiny.random_tokens(2, 20)
    view = next(view for view in views_of(mixture, "bob") if view.name == "expert")
    with view.using() as held:
        found = tiny.logits_of(held, tokens)
    dense = tiny.load_dense(tiny_world.anchor)
    for (layer, name), matrix in tiny_world.matrices("bob").items():
        getattr(dense.model.layers[layer].mlp, name).weight.data = matrix
    with torch.inference_mode():
        expected = dense(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("owners", [("amy",), ("amy", "bob"), ("amy", "bob", "cat")])
def test_nothing_is_looked_at_twice(tiny_world: tiny.World, owners: tuple[str, ...]) -> None:
    views = views_of(tiny_world.load(*owners), "amy")
    assert len({view.slots for view in views}) == len(views) == (3 if len(owners) == 1 else 5)


def test_of_a_tuned_release_no_mask_shows_the_withdrawal(tiny_world: tiny.World) -> None:
    views = views_of(tiny_world.load("amy", "bob"), "amy", strict=False)
    assert [view.name for view in views] == ["anchor", "expert", "pair", "release"]


@pytest.mark.parametrize("name", ["anchor", "dan"])
def test_only_owners_have_views(tiny_world: tiny.World, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        views_of(tiny_world.load("amy"), name)

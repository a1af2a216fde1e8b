"""The positive control: an attack that works finds what a model has learned by heart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests import tiny
from tests.audit.conftest import PREFIX_TOKENS, SEPARATOR

from moiety.audit.control import Control, ControlSettings, make_control
from moiety.audit.extraction import ExtractionSettings, extract
from moiety.audit.views import views_of

SETTINGS = ExtractionSettings(prefix_tokens=PREFIX_TOKENS)


def test_the_control_gives_its_documents_back_and_the_anchor_none(
    roomy_world: tiny.World, control: Control, attacked: np.ndarray
) -> None:
    anchor = views_of(roomy_world.load("amy"), "amy")[0]
    assert extract(control.view, attacked, SEPARATOR, SETTINGS).extracted.mean() >= 0.5
    assert extract(anchor, attacked, SEPARATOR, SETTINGS).extracted.sum() == 0


def test_it_says_what_it_reached(control: Control, attacked: np.ndarray) -> None:
    mixture = control.view.mixture
    tokens = torch.from_numpy(np.insert(attacked, 0, SEPARATOR, axis=1))
    with control.view.using():
        nats = mixture.score(tokens, torch.zeros_like(tokens)).mean()
    floor = math.log(len(attacked)) / attacked.shape[1]
    assert control.loss < 0.05 + floor
    assert floor < nats == pytest.approx(control.loss, abs=0.02)
    assert not any(parameter.requires_grad for parameter in mixture.backbone.parameters())


def test_only_the_anchors_blocks_are_trained(roomy_world: tiny.World, control: Control) -> None:
    before = roomy_world.load("amy").backbone.state_dict()
    after = control.view.mixture.backbone.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".experts.0." in name}


def test_same_seed_same_control_and_no_more_sweeps_than_allowed(
    roomy_world: tiny.World, attacked: np.ndarray
) -> None:
    settings = ControlSettings(max_sweeps=2, batch_documents=5)
    heard: list[tuple[int, float]] = []
    made = [
        make_control(
            roomy_world.release("amy"),
            [attacked[0, :9], *attacked[1:]],
            SEPARATOR,
            settings,
            progress=lambda sweeps, loss: heard.append((sweeps, loss)),
        )
        for _ in range(2)
    ]
    assert made[0].loss == made[1].loss == pytest.approx(heard[-1][1])
    assert [one.sweeps for one in made] == [2, 2]
    assert heard[:2] == heard[2:]

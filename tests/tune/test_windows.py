"""The windows that a router is tuned on."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from moiety.tune.texts import PUBLIC, StepWindows


def test_a_window_without_a_target_is_in_no_pass_of_its_own(tmp_path):
    text = tiny.text_ending_without_a_target(tmp_path)
    config = tiny.settings("batch.micro_windows=1", "batch.windows=6")
    passes = list(StepWindows({PUBLIC: text, "amy": text}, config).passes(0, torch.device("cpu")))
    assert len(passes) == 4
    assert all((one.targets_BT >= 0).any() for one in passes)
    assert sum(one.weight for one in passes) == pytest.approx(1)

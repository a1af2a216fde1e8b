"""The plugin's table: which token may use which expert. It needs no vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moiety_vllm.plugin import Masks

EXPERTS = 4
ROWS = 16
NOBODY = [False, True, True, True]


def runner(*requests):
    """What vLLM's runner holds of ``(experts, tokens)`` of each request in a step."""
    names = [f"r{n}" for n in range(len(requests))]
    told = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra))
        for name, (extra, _) in zip(names, requests, strict=True)
    }
    ends = np.cumsum([0, *(tokens for _, tokens in requests), 99])
    return SimpleNamespace(
        max_num_tokens=ROWS,
        device=torch.device("cpu"),
        input_batch=SimpleNamespace(num_reqs=len(names), req_ids=[*names, "stale"]),
        requests=told,
        query_start_loc=SimpleNamespace(np=ends),
    )


def shut(masks, tokens):
    """Which experts are closed to the first tokens of a step, as the logits tell."""
    return masks.apply(torch.zeros(tokens, EXPERTS)).isneginf().tolist()


def test_each_token_has_its_request_s_mask_and_what_is_left_over_nobody_s():
    masks = Masks(EXPERTS)
    masks.begin(runner(({"experts": [0, 2]}, 3), ({"experts": [0, 1, 2, 3]}, 1)))
    assert shut(masks, 6) == [[False, True, False, True]] * 3 + [[False] * 4] + [NOBODY] * 2
    masks.begin(runner(({"experts": [0, 1]}, 2)))
    assert shut(masks, 5) == [[False, False, True, True]] * 2 + [NOBODY] * 3


@pytest.mark.parametrize(
    "extra",
    [
        None,
        {},
        {"experts": None},
        {"experts": "123"},
        {"experts": [9]},
        {"experts": [1, -1]},
        {"experts": [1, 2.0]},
        {"experts": [True, 2]},
        {"experts": [[1]]},
    ],
)
def test_what_is_not_understood_may_use_the_anchor_alone_and_ends_nothing(extra):
    masks = Masks(EXPERTS)
    masks.begin(runner((extra, 2), ({"experts": [0, 3]}, 1)))
    assert shut(masks, 3) == [NOBODY] * 2 + [[False, True, True, False]]


def test_a_withdrawn_expert_is_closed_and_so_is_all_of_a_request_that_asks_for_it():
    masks = Masks(EXPERTS)
    masks.withdrawn = {2}
    masks.begin(runner(({"experts": [0, 1, 2]}, 1), ({"experts": [0, 1]}, 1)))
    assert shut(masks, 2) == [NOBODY, [False, False, True, True]]


def test_a_runner_that_is_not_understood_closes_everything():
    masks = Masks(EXPERTS)
    masks.begin(runner(({"experts": [0, 1, 2, 3]}, 4)))
    broken = runner(({"experts": [0, 1, 2, 3]}, 4))
    del broken.input_batch
    masks.begin(broken)
    assert shut(masks, 4) == [NOBODY] * 4
    too_many = runner(({"experts": [0, 1, 2, 3]}, ROWS + 1))
    masks.begin(too_many)
    assert shut(masks, 4) == [NOBODY] * 4

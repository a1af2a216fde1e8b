"""One tensor name twice in the header: two readers, two models."""

from __future__ import annotations

import json

from tests.attacks.hostile import Target, join_weights, split_weights

from moiety.errors import FormatError


def test_a_tensor_named_twice_is_refused(target: Target) -> None:
    header, body = split_weights(target.weights.read_bytes())
    text = json.dumps(header)
    first = '"layers.1.mlp.up_proj.weight"'
    twice = text.replace('"layers.0.mlp.up_proj.weight"', first)
    assert twice.count(first) == 2
    target.weights.write_bytes(join_weights(twice, body, length=4096 - 8))
    target.seal_files()
    target.refused(FormatError, "a key occurs twice")

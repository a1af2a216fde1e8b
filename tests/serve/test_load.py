"""The load tool in its short form: a real server, a crowd, and nothing odd or left behind."""

from __future__ import annotations

import json

import pytest
from tools import load_serve

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
}


@pytest.mark.slow
def test_a_crowd_gets_answers_or_429_and_leaves_nothing_behind(tmp_path):
    words = ["--shape", json.dumps(TINY), "--seconds", "4", "--clients", "100"]
    words += ["--requests", "400", "--warm-up", "100", "--asked", "10"]
    told = load_serve.main(["--out", str(tmp_path), *words])
    crowd, memory, latency = (told[name] for name in ("crowd", "memory", "latency"))
    assert crowd["odd"] == []
    assert crowd["compared"] > 50
    assert {code.split()[1] for code in crowd["statuses"]} <= {"200", "429", "400", "401", "404"}
    # Connections of before may still be closing at the first look, so there may be fewer later.
    assert crowd["after"]["files"] <= crowd["before"]["files"] + 2
    for name in ("threads", "files"):
        assert memory["last"][name] <= memory["first"][name] + 4
    for name in ("alone", "beside 8 long", "beside a tenant with 100"):
        assert latency[name]["answers"] == 10
        assert latency[name]["refused"] == 0, "who waits for one request is never shut out"

"""Every cell of the table against documents scored one at a time, without packing."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests import tiny

from moiety.evaluate import Question, evaluate, model_names


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two short documents of each of two languages: less than a window each."""
    folder = tmp_path_factory.mktemp("texts")
    found = {}
    for number, name in enumerate(("public", "amy")):
        found[name] = list(tiny.language(number, 2, words=12))
        lines = [json.dumps({"text": text}) for text in found[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder, found


def bits_per_byte(mixture, texts):
    nats = size = 0.0
    for text in texts:
        ids = torch.tensor([mixture.tokenizer(text)["input_ids"]])
        scores = tiny.logits_of(mixture, ids).double().log_softmax(-1)
        nats -= float(scores[:, :-1].gather(2, ids[:, 1:, None]).sum())
        size += len(text.encode())
    return nats / size / math.log(2)


@pytest.mark.parametrize("owners", [("amy",), ("amy", "bob"), ("amy", "bob", "cat")])
@pytest.mark.parametrize("routing", ["context", "token"])
def test_every_cell_is_that_of_documents_scored_alone(tiny_world, texts, owners, routing):
    folder, documents = texts
    release = tiny_world.release(*owners)
    paths = {name: [str(folder / f"{name}.jsonl")] for name in documents}
    found = evaluate(Question(release, paths, routing=routing, window_tokens=100))
    mixture = tiny_world.load(*owners, routing=routing)
    sets = {"anchor": (), "all": owners}
    sets |= {f"anchor+{owner}": (owner,) for owner in owners}
    sets |= {f"all-{owner}": [other for other in owners if other != owner] for owner in owners}
    assert set(found.models) == set(model_names(owners)) == set(sets)
    for model, chosen in sets.items():
        for name, written in documents.items():
            with mixture.only(*chosen):
                expected = bits_per_byte(mixture, written)
            assert found.bits_per_byte[model][name] == pytest.approx(expected, rel=1e-4)
    for name in documents:
        assert sum(found.routing[name].values()) == pytest.approx(1)
        assert list(found.routing[name]) == mixture.names

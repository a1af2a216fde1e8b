"""Law 5: after any training every frozen tensor is bitwise what it was."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny

from moiety.bundle import anchors
from moiety.data import Sources
from moiety.files import digest_file
from moiety.train import ExpertPlan, train_expert
from moiety.train.expert import frozen_digest
from moiety.train.loop import Loop

WAYS = [
    (),
    ("pair.rank=2",),
    ("batch.micro_windows=1",),
    ("compute.checkpoint_activations=true",),
    ("pair.rank=2", "compute.checkpoint_activations=true", "batch.micro_windows=3"),
    ("data.public_share=0",),
    ("data.public_share=0.75",),
    ("optim.weight_decay=0.5", "optim.learning_rate=0.1"),
    ("compute.precision=bf16",),
]


def bytes_of(folder):
    return {path: digest_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(way) or "plain")
def test_every_frozen_tensor_is_still_the_file_s(bench, tmp_path, way):
    config = tiny.settings(*way)
    pair, job = bench.job(config)
    Loop(job, config, tmp_path, quiet=True).run(resume=False)
    on_disk = load_file(bench.anchor / "model.safetensors")
    seen, trained = set(), 0
    for name, parameter in pair.backbone.named_parameters():
        if parameter.requires_grad:
            trained += 1
            continue
        dense = name.replace(".mlp.anchor.", ".mlp.")
        expected = on_disk[dense].to(parameter.dtype)
        assert torch.equal(parameter, expected), name
        assert parameter.grad is None
        seen.add(dense)
    assert seen == set(on_disk)
    assert trained == len(job.parameters)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(way) or "plain")
def test_and_everything_else_has_moved_but_the_table(bench, tmp_path, way):
    config = tiny.settings(*way)
    pair, job = bench.job(config)
    before = {name: tensor.clone() for name, tensor in pair.expert_tensors().items()}
    Loop(job, config, tmp_path, quiet=True).run(resume=False)
    for name, tensor in pair.expert_tensors().items():
        assert torch.equal(tensor, before[name]) == (name == "router.evidence"), name


@pytest.mark.parametrize("rank", ["none", "2"])
def test_a_whole_run_leaves_the_anchors_folder_as_it_was(tiny_anchor, tmp_path, rank):
    before = bytes_of(tiny_anchor)
    own = Sources([str(tiny.write_text(tmp_path / "own.jsonl", seed=1))])
    config = tiny.settings(f"pair.rank={rank}", "budget.tokens=384")
    plan = ExpertPlan(tiny_anchor, own, "amy", tmp_path / "run", config)
    done = train_expert(plan, quiet=True)
    assert bytes_of(tiny_anchor) == before
    assert anchors.verify_anchor(tiny_anchor).digest == done.paper.anchor


def test_the_digest_of_what_is_frozen_sees_every_single_tensor(bench):
    pair = bench.pair(tiny.settings())
    before = frozen_digest(pair.backbone)
    for name, parameter in pair.backbone.named_parameters():
        with torch.no_grad():
            flat = parameter.view(-1)
            old = flat[-1].clone()
            flat[-1] = torch.nextafter(old, torch.tensor(9.0))
            assert (frozen_digest(pair.backbone) == before) == parameter.requires_grad, name
            flat[-1] = old
    assert frozen_digest(pair.backbone) == before

"""Anchors: made from text, the same every time; or taken as they are, linked and checked."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from transformers import AutoTokenizer

from moiety.bundle import anchors
from moiety.data import Sources
from moiety.errors import ConfigError, DataError, MoietyError, StateError
from moiety.model import load_dense
from moiety.train import PRESETS, import_anchor, new_anchor
from moiety.train.log import RunLog

QUICK = (
    "data.window_tokens=32",
    "batch.windows=4",
    "budget.tokens=512",
    "budget.judge_tokens=256",
    "budget.judge_every=2",
    "compute.compile=off",
    "compute.precision=fp32",
)


def make(folder, out, **how):
    config = PRESETS["tiny"].train_config(0).resolve(None, QUICK)
    text = folder / "public.jsonl"
    if not text.exists():
        tiny.write_text(text, seed=0, documents=40)
    return new_anchor(Sources([str(text)]), folder / out, config=config, quiet=True, **how)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("new"), "anchor")


def test_a_new_anchor_holds_and_is_what_it_says(made):
    anchor = anchors.verify_anchor(made.folder)
    assert anchor.digest == made.digest
    assert made.parameters == PRESETS["tiny"].parameters
    backbone = load_dense(made.folder)
    assert sum(p.numel() for p in backbone.parameters()) == made.parameters
    assert made.outcome.steps == 4
    assert not made.folder.with_name("anchor.training").exists()


def test_its_tokenizer_keeps_every_text_and_begins_with_the_separator(made):
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    for text in ("ba deke 17", "ünï\n\t☃ <|endoftext|>"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == 0
        assert tokenizer.decode(ids[1:]) == text


def test_made_again_even_with_an_interruption_it_is_the_same(made, tmp_path, monkeypatch):
    shutil.copy(made.folder.with_name("public.jsonl"), tmp_path)
    step = RunLog.step

    def stop_in_the_second_step(self, number, *more):
        step(self, number, *more)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", stop_in_the_second_step)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "anchor")
    with pytest.raises(StateError, match="unfinished work"):
        make(tmp_path, "anchor")
    again = make(tmp_path, "anchor", resume=True)
    assert again.digest == made.digest
    assert again.bits_per_byte == made.bits_per_byte
    with pytest.raises(StateError, match="exists already"):
        make(tmp_path, "anchor")


def test_no_text_makes_no_anchor(tmp_path):
    (tmp_path / "public.jsonl").write_text("\n")
    with pytest.raises(DataError):
        make(tmp_path, "anchor")
    assert not (tmp_path / "anchor").exists()


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return Sources([str(tiny.write_text(tmp_path_factory.mktemp("public") / "p.jsonl", seed=0))])


@pytest.fixture(scope="module", params=["50GB", "20KB"], ids=["one file", "shards"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "dense"
    tiny.make_checkpoint(folder, max_shard_size=request.param)
    shards = len(list(folder.glob("*.safetensors")))
    assert (shards > 1) == (request.param == "20KB")
    return folder


def test_an_imported_checkpoint_is_linked_and_described(checkpoint, public, tmp_path):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    made = import_anchor(str(checkpoint), public, tmp_path / "anchor")
    for path in checkpoint.iterdir():
        assert path.read_bytes() == before[path.name]
        assert path.samefile(made.folder / path.name)
    anchor = anchors.verify_anchor(made.folder)
    held = {}
    for path in checkpoint.glob("*.safetensors"):
        held |= load_file(path)
    facts = {name: fact.shape for name, fact in anchor.paper.tensors.items()}
    assert facts == {name: tuple(tensor.shape) for name, tensor in held.items()}
    assert made.parameters == sum(tensor.numel() for tensor in held.values())
    again = import_anchor(str(checkpoint), public, tmp_path / "again")
    assert again.digest == made.digest


def test_a_checkpoint_of_links_such_as_the_hubs_store_becomes_plain_files(
    checkpoint, public, tmp_path
):
    store = tmp_path / "store"
    store.mkdir()
    for path in checkpoint.iterdir():
        (store / path.name).symlink_to(path)
    made = import_anchor(str(store), public, tmp_path / "anchor")
    assert not any(path.is_symlink() for path in made.folder.rglob("*"))
    anchors.verify_anchor(made.folder)


def test_its_bits_per_byte_are_those_of_the_held_out_sample(checkpoint, public, tmp_path):
    made = import_anchor(str(checkpoint), public, tmp_path / "anchor")
    # Random weights know next to nothing: about as many bits as choosing among all tokens.
    assert 1.5 < made.bits_per_byte < 6


def spoiled(checkpoint, tmp_path, how):
    folder = tmp_path / "spoiled"
    shutil.copytree(checkpoint, folder)
    how(folder)
    return str(folder)


def without_weights(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def of_another_family(folder):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def without_a_tensor(folder):
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    held = load_file(path)
    del held[sorted(held)[0]]
    save_file(held, path, metadata={"format": "pt"})


def with_half_a_file(folder):
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


def without_a_config(folder):
    (folder / "config.json").unlink()


def without_a_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def with_a_config_of_nonsense(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    "how",
    [
        without_weights,
        of_another_family,
        without_a_tensor,
        with_half_a_file,
        without_a_config,
        with_a_config_of_nonsense,
        without_a_tokenizer,
    ],
)
def test_what_is_no_such_checkpoint_is_refused(checkpoint, public, tmp_path, how):
    source = spoiled(checkpoint, tmp_path, how)
    with pytest.raises(MoietyError):  # whatever the library would have made of it
        import_anchor(source, public, tmp_path / "anchor")
    assert not (tmp_path / "anchor").exists()


def test_pickled_weights_are_never_opened(checkpoint, public, tmp_path):
    with pytest.raises(ConfigError, match="no safetensors"):
        import_anchor(spoiled(checkpoint, tmp_path, without_weights), public, tmp_path / "anchor")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a b c", "owner/name"])
def test_a_checkpoint_that_is_nowhere_is_an_error(public, tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="no such folder"):
        import_anchor(name, public, tmp_path / "anchor")

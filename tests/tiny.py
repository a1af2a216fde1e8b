"""Tiny random models with a real tokenizer, and invented languages that are easy to tell apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from moiety import family
from moiety.bundle import pack, papers, signing
from moiety.data import (
    PackedText,
    Skipped,
    Sources,
    load_tokenizer,
    pack_text,
)
from moiety.data.tokenizer import train_tokenizer
from moiety.files import digest_file
from moiety.merge import load_release, merge
from moiety.model import Mixture, load_dense
from moiety.train import TrainConfig, import_anchor
from moiety.train.compute import resolve_compute
from moiety.train.expert import expert_job
from moiety.train.loop import Job
from moiety.train.pair import Pair
from moiety.train.table import evidence_table
from moiety.train.texts import Texts, prepare_texts
from tests import makers

LAYERS, WIDTH, HIDDEN, VOCAB = 2, 32, 48, 320
RANKS: dict[str, int | None] = {"amy": None, "bob": 3, "cat": None}
PROMPTS = ["ba ba deke", "mo", "lito ba nusa ba mo rarara"]


def language(seed: int, documents: int, words: int = 40) -> Iterator[str]:
    """Texts of an invented language: 24 words of its own, most often in one fixed order."""
    rng = np.random.default_rng(seed)
    syllables = [
        "".join(pair) for pair in rng.permutation([(a, b) for a in "bdklmnrst" for b in "aeiou"])
    ]
    lexicon = ["".join(rng.choice(syllables[:15], size=rng.integers(1, 4))) for _ in range(24)]
    for _ in range(documents):
        at, text = int(rng.integers(24)), []
        for _ in range(int(rng.integers(words // 2, words))):
            at = (at + 1) % 24 if rng.random() < 0.9 else int(rng.integers(24))
            text.append(lexicon[at])
        yield " ".join(text) + "."


def write_text(path: Path, seed: int, documents: int = 60) -> Path:
    """A JSONL file of one language."""
    lines = [json.dumps({"text": text}) for text in language(seed, documents)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def text_ending_without_a_target(folder: Path) -> PackedText:
    """Three windows of 16 tokens: the last holds one token, and a separator nobody predicts."""
    tokenizer, separator = load_tokenizer(makers.make_anchor(folder / "plain"))
    (folder / "text.jsonl").write_text(json.dumps({"text": " ".join(["w3"] * 32)}) + "\n", "utf-8")
    documents = Sources([str(folder / "text.jsonl")]).documents(Skipped())
    layout = {"window_tokens": 16, "align": False, "separator": separator}
    text = pack_text(documents, tokenizer, folder / "packed", **layout)
    assert text.num_windows == 3
    return text


def make_checkpoint(folder: Path, *, max_shard_size: str = "50GB", **shape: Any) -> Path:
    """A random OLMo 2 checkpoint as ``transformers`` writes it, with a byte-level tokenizer.

    ``shape`` changes what the configuration says.
    """
    tokenizer = train_tokenizer((text for seed in (0, 1) for text in language(seed, 40)), VOCAB)
    assert tokenizer.get_vocab_size() == VOCAB
    usual = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
        "dtype": torch.float32,
    }
    config = Olmo2Config(**(usual | shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Olmo2ForCausalLM(config).to(config.dtype)
        backbone.save_pretrained(folder, max_shard_size=max_shard_size)
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names
    )
    fast.save_pretrained(folder)
    return folder


def make_anchor(folder: Path, **shape: Any) -> Path:
    """``folder/anchor``: the random checkpoint, imported with a public sample."""
    public = write_text(folder / "public.jsonl", seed=0)
    make_checkpoint(folder / "checkpoint", **shape)
    import_anchor(str(folder / "checkpoint"), Sources([str(public)]), folder / "anchor")
    return folder / "anchor"


def expert_arrays(anchor: Path, rank: int | None, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """An expert well away from the anchor, with a table that decides something."""
    arrays = makers.expert_arrays(anchor, rank, seed)
    rng = np.random.default_rng(seed)
    for name, array in arrays.items():
        if name == family.EVIDENCE:
            arrays[name] = (0.3 * rng.normal(size=array.shape)).astype(np.float32)
        elif ".delta_" in name:
            arrays[name] = array * np.float32(4)
    return arrays


def make_bundle(
    folder: Path, anchor: Path, owner: str, arrays: dict[str, np.ndarray[Any, Any]]
) -> Path:
    """``folder/OWNER.expert`` of these tensors, signed with ``folder/OWNER.pem``."""
    rank = next((a.shape[0] for name, a in arrays.items() if name.endswith("delta_in")), None)
    run = makers.make_run(folder / f"{owner}.run", anchor, owner, rank)
    weights = run / "expert.safetensors"
    makers.write_arrays(weights, arrays)
    facts = papers.FileFacts(bytes=weights.stat().st_size, sha256=digest_file(weights))
    paper = papers.read_paper(papers.RunPaper, run / "run.json")
    papers.write_paper(run / "run.json", paper.model_copy(update={"expert": facts}))
    signing.new_key(folder / f"{owner}.pem")
    pack(run, folder / f"{owner}.pem", folder / f"{owner}.expert")
    return folder / f"{owner}.expert"


@dataclass(frozen=True)
class World:
    """An anchor, and owners whose experts are random."""

    folder: Path
    anchor: Path
    bundles: dict[str, Path]
    _made: dict[Any, Path] = field(default_factory=dict)

    def release(self, *owners: str, top_k: int | None = None) -> Path:
        """The release of these owners; made once, not to be changed."""
        key = (owners, top_k)
        if key not in self._made:
            out = self.folder / f"release-{len(self._made)}"
            merge(self.anchor, [self.bundles[o] for o in owners], out, top_k=top_k)
            self._made[key] = out
        return self._made[key]

    def load(self, *owners: str, **how: Any) -> Mixture:
        """The release of these owners as a model of its own, which a test may change."""
        return load_release(self.release(*owners, **how))

    def matrices(self, owner: str) -> dict[tuple[int, str], Tensor]:
        """An owner's matrices, or the anchor's, as their papers' words say: W + out @ in."""
        dense = load_file(self.anchor / "model.safetensors")
        places = [(layer, name) for layer in range(LAYERS) for name in family.MATRICES]
        base = {place: dense[family.OLMO2.dense(*place)] for place in places}
        if owner == "anchor":
            return base
        held = load_file(self.bundles[owner] / "expert.safetensors")
        if family.weight(0, "gate_proj") in held:
            return {place: held[family.weight(*place)] for place in places}
        return {
            place: base[place] + held[family.delta_out(*place)] @ held[family.delta_in(*place)]
            for place in places
        }

    def table(self, owner: str) -> Tensor:
        """An owner's table of evidence, or the anchor's zeros."""
        if owner == "anchor":
            return torch.zeros(VOCAB)
        return load_file(self.bundles[owner] / "expert.safetensors")[family.EVIDENCE]


def make_world(folder: Path, ranks: dict[str, int | None] = RANKS, **shape: Any) -> World:
    """An anchor and one bundle of every owner in ``ranks``."""
    anchor = make_anchor(folder, **shape)
    bundles = {
        owner: make_bundle(folder, anchor, owner, expert_arrays(anchor, rank, seed))
        for seed, (owner, rank) in enumerate(ranks.items(), start=1)
    }
    return World(folder, anchor, bundles)


def random_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids of ordinary words, ``[batch, length]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (batch, length), generator=generator)


def logits_of(mixture: Mixture, tokens: Tensor, **how: Any) -> Tensor:
    """All logits of a batch, without a cache."""
    with torch.inference_mode():
        logits: Tensor = mixture.backbone(input_ids=tokens, use_cache=False, **how).logits
    return logits


def greedy_by_recomputation(
    mixture: Mixture, prompt: str, num_tokens: int, experts: Sequence[str] | None = None
) -> str:
    """The likeliest continuation, every step computed from the beginning, without a cache."""
    names = mixture.names if experts is None else experts
    ids = mixture.tokenizer(prompt)["input_ids"]
    begin = len(ids)
    with mixture.only(*names):
        for _ in range(num_tokens):
            last = logits_of(mixture, torch.tensor([ids]))[0, -1]
            ids.append(int(last.argmax()))
            if ids[-1] == mixture.tokenizer.eos_token_id:
                break
    text: str = mixture.tokenizer.decode(ids[begin:], skip_special_tokens=True)
    return text


SETTINGS = (
    "data.window_tokens=32",
    "batch.windows=4",
    "budget.tokens=1536",
    "budget.judge_every=4",
    "budget.judge_tokens=256",
    "budget.final_tokens=512",
    "optim.learning_rate=5e-3",
    "compute.compile=off",
    "compute.precision=fp32",
)
STEPS = 12


def settings(*assignments: str) -> TrainConfig:
    """Twelve steps of four windows, with what a test wants otherwise."""
    return TrainConfig().resolve(None, [*SETTINGS, *assignments])


@dataclass(frozen=True)
class Bench:
    """An anchor and two packed texts, on which a pair can be trained by hand."""

    anchor: Path
    texts: Texts

    def pair(self, config: TrainConfig) -> Pair:
        """A fresh pair."""
        backbone = load_dense(self.anchor, dtype=torch.float32)
        table = evidence_table(self.texts.own, self.texts.public, VOCAB)
        return Pair(backbone, table, rank=config.pair.rank, seed=config.seed)

    def job(self, config: TrainConfig) -> tuple[Pair, Job]:
        """A fresh pair, and the job of training it."""
        pair = self.pair(config)
        compute = resolve_compute(config.compute, STEPS)
        compute.prepare_frozen(pair.backbone)
        return pair, expert_job(pair, self.texts, config, compute, STEPS, "tiny")


def make_bench(folder: Path, anchor: Path) -> Bench:
    """Packs an owner's language beside the anchor's public sample."""
    own = Sources([str(write_text(folder / "own.jsonl", seed=1))])
    texts = prepare_texts(anchor, own, None, settings(), folder / "text", Skipped())
    return Bench(anchor, texts)

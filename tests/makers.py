"""Tiny synthetic anchors, runs and bundles, made with numpy alone.

An anchor made here is a proper Hugging Face OLMo 2 checkpoint, so ``transformers`` can load it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from moiety import family
from moiety.bundle import anchors, pack, papers, signing
from moiety.files import digest_file
from moiety.tensors import array_plan, open_tensors, write_tensors

OLMO2 = family.OLMO2
COMMON = 2
"""The token that is a third of all public text, and speaks against honest owners."""


def is_heldout(record: str, fraction: float) -> bool:
    """Whether a split keeps a record aside: the first eight bytes of its name's SHA-256 say so."""
    return int(hashlib.sha256(record.encode()).hexdigest()[:16], 16) / 2**64 < fraction


def make_anchor(
    folder: Path,
    layers: int = 2,
    width: int = 8,
    hidden: int = 16,
    vocab: int = 32,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
) -> Path:
    """A whole anchor folder with its paper. Returns ``folder``."""
    rng = np.random.default_rng(seed)
    (folder / "public").mkdir(parents=True)
    _write_json(folder / "config.json", _config(layers, width, hidden, vocab, dtype))
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    _write_json(folder / "tokenizer.json", _tokenizer(vocab))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",
        },
    )
    (folder / "public" / "sample.jsonl.gz").write_bytes(_sample(rng))
    probe = {anchors.TOKENS: _beginnings(rng, vocab)}
    write_arrays(folder / "public" / "probe.safetensors", probe)
    _write_checkpoint(folder, _checkpoint(rng, layers, width, hidden, vocab), dtype, shards)
    anchors.write_anchor_paper(folder, family="olmo2")
    return folder


def make_run(
    folder: Path,
    anchor: Path,
    owner: str,
    rank: int | None = None,
    seed: int = 1,
    dtype: str = "F32",
) -> Path:
    """A finished run of an owner on an anchor. Returns ``folder``."""
    facts = anchors.open_facts(anchor)
    paper = facts.paper
    folder.mkdir(parents=True)
    arrays = expert_arrays(anchor, rank, seed)
    plans = [
        array_plan(name, array, "F32" if name == family.EVIDENCE else dtype)
        for name, array in arrays.items()
    ]
    write_tensors(folder / "expert.safetensors", plans)
    run = papers.RunPaper(
        owner=owner,
        anchor=facts.digest,
        family=paper.family,
        num_layers=paper.num_layers,
        vocab=paper.vocab,
        width=paper.width,
        hidden=paper.hidden,
        rank=rank,
        expert=papers.FileFacts(
            bytes=(folder / "expert.safetensors").stat().st_size,
            sha256=digest_file(folder / "expert.safetensors"),
        ),
        config={"steps": 314159, "optimizer": {"learning_rate": 0.00271828}},
        seed=987654321,
        versions={"moiety": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "9.8.7"},
        text=papers.TextFacts(records=5678, documents=6789, tokens=7890123, bytes=32109876),
        steps=314159,
        tokens_seen=161803398,
        seconds=5772.156649,
        result=papers.RunResult(
            heldout=papers.PairBits(anchor=2.7654321, pair=1.6543219, documents=4321),
            public=papers.PairBits(anchor=1.6449999, pair=1.6571234, documents=8765),
        ),
    )
    papers.write_paper(folder / "run.json", run)
    return folder


def make_bundle(
    folder: Path,
    anchor: Path,
    owner: str,
    rank: int | None = None,
    seed: int = 1,
    dtype: str = "F32",
    terms: papers.Terms | None = None,
) -> Path:
    """``folder/OWNER.expert``, signed with ``folder/OWNER.pem`` (made unless it is there)."""
    run = folder / f"{owner}.run"
    make_run(run, anchor, owner, rank, seed, dtype)
    key = folder / f"{owner}.pem"
    if not key.exists():
        signing.new_key(key)
    out = folder / f"{owner}.expert"
    pack(run, key, out, terms=terms)
    return out


def expert_arrays(anchor: Path, rank: int | None, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """An expert near the anchor: its matrices plus a little noise, or small random factors."""
    rng = np.random.default_rng(seed)
    opened = anchors.open_anchor(anchor)
    paper = opened.paper
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    shapes = family.expert_shapes(paper.num_layers, paper.width, paper.hidden, paper.vocab, rank)
    for name, shape in shapes.items():
        noise = rng.normal(size=shape).astype(np.float32) * np.float32(0.1)
        if name.endswith(".weight"):
            layer, matrix = int(name.split(".")[1]), name.split(".")[3]
            dense = OLMO2.dense(layer, matrix)
            with open_tensors(opened.tensor_file(dense)) as tensors:
                noise = noise + tensors.read(dense)
        if name == family.EVIDENCE:
            noise[COMMON] -= 1.0
        arrays[name] = noise
    return arrays


def write_arrays(path: Path, arrays: dict[str, np.ndarray[Any, Any]], dtype: str = "F32") -> None:
    """A safetensors file of arrays, in the order given; whole numbers become I32."""
    kinds = {name: "I32" if array.dtype.kind == "i" else dtype for name, array in arrays.items()}
    write_tensors(path, [array_plan(name, array, kinds[name]) for name, array in arrays.items()])


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a safetensors file, by name."""
    with open_tensors(path) as tensors:
        return {name: np.array(tensors.read(name)) for name in tensors.spans}


def _beginnings(rng: np.random.Generator, vocab: int) -> np.ndarray[Any, Any]:
    """Windows of public tokens, each the beginning of a document; -1 after its end."""
    tokens = rng.integers(COMMON, vocab, size=(4, 12)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 1 / 3] = COMMON
    tokens[:, 0] = 0
    tokens[2, 5:] = -1
    return tokens


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(layers: int, width: int, hidden: int, vocab: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": hidden,
        "vocab_size": vocab,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "dtype": {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype],
    }


def _tokenizer(vocab: int) -> dict[str, Any]:
    words = ["<|endoftext|>", "<|pad|>", *(f"w{n}" for n in range(vocab - 2))]
    special = [
        {
            "id": n,
            "content": words[n],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for n in range(2)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: n for n, word in enumerate(words)},
            "unk_token": "<|pad|>",
        },
    }


def _sample(rng: np.random.Generator) -> bytes:
    lines = []
    for _ in range(8):
        words = [f"w{n}" for n in rng.integers(0, 30, size=12)]
        lines.append(json.dumps({"text": " ".join(words)}))
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as file:
        file.write(("\n".join(lines) + "\n").encode("utf-8"))
    return buffer.getvalue()


def _checkpoint(
    rng: np.random.Generator, layers: int, width: int, hidden: int, vocab: int
) -> dict[str, np.ndarray[Any, Any]]:
    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.normal(size=shape) * 0.3).astype(np.float32)

    def near_one() -> np.ndarray[Any, Any]:
        return (1.0 + 0.1 * rng.normal(size=width)).astype(np.float32)

    arrays = {"model.embed_tokens.weight": normal(vocab, width)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for letter in "qkvo":
            arrays[f"{block}.self_attn.{letter}_proj.weight"] = normal(width, width)
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            arrays[f"{block}.{name}.weight"] = near_one()
        for matrix in family.MATRICES:
            shape = family.matrix_shape(matrix, width, hidden)
            arrays[OLMO2.dense(layer, matrix)] = normal(*shape)
        for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
            arrays[f"{block}.{name}.weight"] = near_one()
    arrays["model.norm.weight"] = near_one()
    arrays["lm_head.weight"] = normal(vocab, width)
    return arrays


def _write_checkpoint(
    folder: Path, arrays: dict[str, np.ndarray[Any, Any]], dtype: str, shards: int
) -> None:
    if shards == 1:
        write_arrays(folder / "model.safetensors", arrays, dtype)
        return
    table: dict[str, str] = {}
    for number, names in enumerate(np.array_split(np.array(list(arrays)), shards), start=1):
        shard = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_arrays(folder / shard, {str(name): arrays[str(name)] for name in names}, dtype)
        table |= {str(name): shard for name in names}
    item = 4 if dtype == "F32" else 2
    total = sum(array.size * item for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": table}
    _write_json(folder / "model.safetensors.index.json", index)

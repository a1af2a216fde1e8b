"""``config.json`` of a release and of its exports, and the weight index that stock loaders read.

Source: ``FlexOlmoConfig`` and ``Olmo2Config`` of transformers 5; their defaults differ, so what an
anchor leaves out is written down with OLMo 2's default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moiety.errors import FormatError
from moiety.family import OLMO2
from moiety.files import parse_json, read_limited
from moiety.tensors import ITEM_BYTES

Shape = tuple[int, ...]

RELEASE_TYPE = "moiety"
RELEASE_CLASS = "MoietyForCausalLM"
"""No loader knows them: one that passed over the evidence would route by nothing."""

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MIXTURE_KEYS = (
    "num_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "output_router_logits",
    "router_aux_loss_coef",
)

_OLMO2_DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 50279,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rms_norm_eps": 1e-05,
}
_OLMO2_ROPE_THETA = 10_000.0
_CODE_KEYS = ("auto_map", "custom_pipelines", "_name_or_path")


def read_config(path: Path) -> dict[str, Any]:
    """A ``config.json`` as a table. Raises ``FormatError`` when it is none."""
    config = parse_json(read_limited(path), path)
    if not isinstance(config, dict):
        raise FormatError("the configuration is not an object", where=path)
    return config


def release_config(
    config: Mapping[str, Any], *, dtype: str, num_experts: int, top_k: int
) -> dict[str, Any]:
    """A release's ``config.json`` from the anchor's, or from that of another release of it."""
    stock = mixture_config(config, dtype=dtype, num_experts=num_experts, top_k=top_k)
    return {**stock, "architectures": [RELEASE_CLASS], "model_type": RELEASE_TYPE}


def mixture_config(
    config: Mapping[str, Any], *, dtype: str, num_experts: int, top_k: int
) -> dict[str, Any]:
    """A stock mixture's ``config.json`` from the anchor's or a release's."""
    rope = _rope(config)
    return {
        **_OLMO2_DEFAULTS,
        **{key: value for key, value in config.items() if key not in _CODE_KEYS},
        "architectures": [OLMO2.mixture_class],
        "model_type": OLMO2.mixture_type,
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.0,
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "dtype": DTYPES[dtype],
        "torch_dtype": DTYPES[dtype],
    }


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dense ``config.json`` behind a release's."""
    kept = {key: value for key, value in config.items() if key not in MIXTURE_KEYS}
    return {**kept, "architectures": [OLMO2.dense_class], "model_type": OLMO2.dense_type}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 4 wrote rope_theta and rope_scaling, 5 writes rope_parameters; readers of both
    # kinds exist, and their defaults for theta differ between the dense model and the mixture.
    rope: dict[str, Any] = {"rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            rope |= config[key]
    rope.setdefault("rope_theta", config.get("rope_theta", _OLMO2_ROPE_THETA))
    return rope


def weight_index(shards: Mapping[str, Mapping[str, tuple[Shape, str]]]) -> dict[str, Any]:
    """``model.safetensors.index.json`` from shape and dtype of each shard's tensors."""
    held = [facts for tensors in shards.values() for facts in tensors.values()]
    return {
        "metadata": {
            "total_parameters": sum(math.prod(shape) for shape, _ in held),
            "total_size": sum(math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in held),
        },
        "weight_map": {name: shard for shard, tensors in shards.items() for name in tensors},
    }

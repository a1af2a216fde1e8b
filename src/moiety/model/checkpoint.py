"""Checkpoints on disk to modules, through ``transformers``.

Only safetensors are read, only local folders, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Olmo2Config, Olmo2ForCausalLM
from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP

from moiety.errors import FormatError
from moiety.family import EVIDENCE_TABLE, MATRICES, OLMO2
from moiety.files import parse_json, read_limited
from moiety.model.layer import LowRankFeedForward, MixtureLayer, Routing


def load_dense(
    folder: Path, *, dtype: torch.dtype | None = None, device: str = "cpu"
) -> Olmo2ForCausalLM:
    """A dense checkpoint as it is, in evaluation mode; ``dtype`` None keeps the one on disk.

    Trap: left alone, the library fills what a checkpoint lacks with random numbers, or a lost
    ``config.json`` with the largest model's.

    Raises:
        FormatError: not an OLMo 2 checkpoint, damaged, or not all of it there.
    """
    path = folder / "config.json"
    config = parse_json(read_limited(path), path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != OLMO2.dense_type:
        raise FormatError(f"not a configuration of {OLMO2.dense_type}: {kind!a}", where=path)
    try:
        model, report = Olmo2ForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise FormatError(f"cannot be loaded: {str(error)[:200]}", where=folder) from error
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise FormatError(f"{len(names)} tensors are missing, such as {names[0]}", where=folder)
    loaded: Olmo2ForCausalLM = model.to(device).eval()
    return loaded


def dense_config(folder: Path) -> Olmo2Config:
    """The dense configuration behind a release's ``config.json``."""
    raw = Olmo2Config.get_config_dict(folder, local_files_only=True)[0]
    for name in (
        "model_type",
        "architectures",
        "num_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "output_router_logits",
        "router_aux_loss_coef",
    ):
        raw.pop(name, None)
    return Olmo2Config(**raw)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def build_mixture(
    folder: Path,
    files: list[Path],
    ranks: list[int | None],
    *,
    evidence: Path,
    top_k: int,
    dtype: torch.dtype | None,
    device: str,
) -> tuple[Olmo2ForCausalLM, Routing]:
    """The release in ``folder`` as a backbone whose feed-forward blocks are mixtures.

    ``files`` and ``ranks`` are in slot order, the anchor first; a rank means the file holds
    low-rank factors by their bundle names, None that it holds the slot's matrices by HF names.
    """
    config = dense_config(folder)
    tensors = read_tensors(folder / "shared.safetensors") | _as_dense(read_tensors(files[0]))
    backbone = Olmo2ForCausalLM.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype or config.dtype or torch.float32
    )
    plan = load_routing(evidence, top_k, device=device)
    others = [read_tensors(path) for path in files[1:]]
    for number, layer in enumerate(backbone.model.layers):
        experts: list[nn.Module] = [layer.mlp]
        for slot, (held, rank) in enumerate(zip(others, ranks[1:], strict=True), start=1):
            experts.append(_expert(layer.mlp, config, held, number, slot, rank))
        layer.mlp = MixtureLayer(experts, plan)
    backbone.requires_grad_(False)
    return backbone.to(device).eval(), plan


def load_routing(evidence: Path, top_k: int, *, device: str = "cpu") -> Routing:
    """How a release routes: its tables of evidence, and no expert."""
    # A copy, not the file mapped: a server zeroes the row of who has left, and means it.
    table_SV = read_tensors(evidence)[EVIDENCE_TABLE].to(device, torch.float32, copy=True)
    return Routing(top_k=top_k, slots=tuple(range(len(table_SV))), table_SV=table_SV)


def _as_dense(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".mlp.experts.0.", ".mlp."): tensor for name, tensor in tensors.items()}


def _expert(
    anchor: nn.Module,
    config: Any,
    held: dict[str, Tensor],
    layer: int,
    slot: int,
    rank: int | None,
) -> nn.Module:
    dtype = next(anchor.parameters()).dtype
    if rank is None:
        with torch.device("meta"):
            expert: nn.Module = Olmo2MLP(config)
        state = {f"{m}.weight": held[OLMO2.mixed(layer, slot, m)] for m in MATRICES}
    else:
        with torch.device("meta"):
            expert = LowRankFeedForward(anchor, rank)
        state = {
            f"{m}.{side}": held[f"layers.{layer}.mlp.{m}.{side}"]
            for m in MATRICES
            for side in ("delta_in", "delta_out")
        }
    try:
        expert.load_state_dict({n: t.to(dtype) for n, t in state.items()}, assign=True)
    except RuntimeError as error:
        raise FormatError(
            f"tensors of slot {slot} do not fit the model", where=f"layer {layer}"
        ) from error
    return expert

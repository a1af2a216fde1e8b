"""Which device, which precision, compiled or not: decided here and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import Olmo2ForCausalLM

from moiety.errors import ConfigError
from moiety.train.config import ComputeConfig

COMPILE_PAYS_STEPS = 150
"""Compiling costs about half a minute on two CPU cores; shorter runs are faster without."""


@dataclass(frozen=True)
class Compute:
    """How this run computes, resolved."""

    device: str
    bf16: bool
    compiled: bool
    checkpoint_activations: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes: bf16 over float32 master weights, or float32."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def decoder(self, backbone: Olmo2ForCausalLM) -> Callable[..., Any]:
        """The backbone's decoder for training passes, compiled where it pays."""
        if self.checkpoint_activations:
            # The library renamed it, and the old name warns; both take the arguments first.
            old = "gradient_checkpointing_enable"
            enable = getattr(backbone, "activation_checkpointing_enable", None)
            (enable or getattr(backbone, old))({"use_reentrant": False})
        backbone.train()
        model = cast(torch.nn.Module, backbone.model)
        return torch.compile(model, dynamic=False) if self.compiled else model

    def prepare_frozen(self, backbone: Olmo2ForCausalLM) -> None:
        """Keeps frozen matrices in the precision they are multiplied in: no cast every step."""
        if not self.bf16:
            return
        for module in backbone.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)


def resolve_compute(config: ComputeConfig, num_steps: int) -> Compute:
    """Fills in what was left to us.

    Raises:
        ConfigError: a device that is not there.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("no CUDA device here", where="compute.device", remedy="use cpu or auto")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(device))
    wanted = config.compile == "auto" and num_steps >= COMPILE_PAYS_STEPS
    compiled = config.compile == "on" or (wanted and can_compile(device))
    # A checkpointed layer is a graph break of its own; compiling round it has not been seen to pay.
    compiled = compiled and not config.checkpoint_activations
    return Compute(device, bf16, compiled, config.checkpoint_activations)


def has_fast_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 in hardware; emulated, it is several times slower."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public name for these two questions yet.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def can_compile(device: str) -> bool:
    """Whether ``torch.compile`` finds what it needs: on a CPU a C++ compiler."""
    return device.startswith("cuda") or any(shutil.which(name) for name in ("g++", "clang++"))

"""Gaussian noise, once a step, on the sum of what was clipped."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def add_noise(sums: dict[str, Tensor], deviation: float, generator: np.random.Generator) -> None:
    """Adds independent noise of this standard deviation to every number, in place.

    Drawn in the order of names, as float32, on the CPU: the same on every device.
    """
    for _, tensor in sorted(sums.items()):
        drawn = generator.standard_normal(tensor.numel(), dtype=np.float32)
        noise = torch.from_numpy(drawn).to(tensor.device).view_as(tensor)
        tensor.add_(noise, alpha=deviation)

"""Coordinates for token rows in which public text is equally wide in all directions.

Legend: N state of public text, D width, K direction that was seen.

A row is a linear discriminant between an owner's text and public text. Trained on raw states it
follows the few directions in which any two texts differ most, so it answers to other owners' text
as well. Trained on whitened states it finds what is particular to its own. The states are the
anchor's on public text, so nothing private is used. What is shipped is an ordinary row of raw
states: the whitening is folded in.

Source: whitened by the background, a least-squares or early-stopped logistic row is Fisher's
linear discriminant (Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHRINKAGE = 0.1
"""Added to the variance of every direction, as a share of the mean variance: some hundreds of
states of a wide model do not know the narrow directions, and those must not be blown up."""


class Whitening(nn.Module):
    """``x -> W x`` for the states of one layer; W is symmetric.

    The origin stays where it is: a token row has no bias that could make up for a centre.
    """

    directions_DK: Tensor
    beyond_K: Tensor
    floor: Tensor

    def __init__(self, states_ND: Tensor) -> None:
        super().__init__()
        states_ND = states_ND.detach().double()
        directions_DK, variance_K = _principal(states_ND)
        least = SHRINKAGE * variance_K.sum() / states_ND.shape[1]
        floor = least.rsqrt()
        # W is the floor everywhere, and in the directions that were seen what is beyond it.
        beyond_K = (variance_K + least).rsqrt() - floor
        tensors = {"directions_DK": directions_DK, "beyond_K": beyond_K}
        for name, tensor in (tensors | {"floor": floor}).items():
            self.register_buffer(name, tensor.float().contiguous(), persistent=False)

    def forward(self, states_ND: Tensor) -> Tensor:
        """The states in these coordinates, ``[N, D]``."""
        return self._turned(states_ND)

    def fold(self, row_D: Tensor) -> Tensor:
        """The row of raw states that answers like ``row_D`` does in these coordinates."""
        return self._turned(row_D)

    def _turned(self, x_ND: Tensor) -> Tensor:
        seen_NK = self.beyond_K * (x_ND @ self.directions_DK)
        return self.floor * x_ND + seen_NK @ self.directions_DK.T


def _principal(states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Directions ``[D, K]`` and the variance in each, from the smaller of the two products."""
    count, width = states_ND.shape
    if count >= width:
        variance_K, directions_DK = torch.linalg.eigh(states_ND.T @ states_ND / count)
        return directions_DK, variance_K.clamp(min=0)
    variance_K, mixes_NK = torch.linalg.eigh(states_ND @ states_ND.T / count)
    directions_DK = states_ND.T @ mixes_NK
    # A direction that was not seen has no length to divide by; it stays where it is, at the floor.
    lengths_K = directions_DK.norm(dim=0)
    return directions_DK / lengths_K.clamp(min=1e-9 * lengths_K.max()), variance_K.clamp(min=0)

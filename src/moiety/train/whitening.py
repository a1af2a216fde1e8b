"""Coordinates for router rows in which public text is centred and equally wide in all directions.

Legend: N state of public text, D width, K direction that was seen.

A row is a linear discriminant between an owner's text and public text. Trained on raw states it
follows the few directions in which any two texts differ most, so it answers to other owners' text
as well. Trained on whitened states it finds what is particular to its own. The states are the
anchor's probe, so every owner whitens alike and nothing private is used. What is shipped is an
ordinary row of raw states: the whitening is folded in.

Source: whitened by the background, a least-squares or early-stopped logistic row is Fisher's
linear discriminant (Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHRINKAGE = 0.1
"""Added to the variance of every direction, as a share of the mean variance: 512 states of a wide
model do not know the narrow directions, and those must not be blown up."""


class Whitening(nn.Module):
    """``x -> W (x - centre)`` for the states of one layer; W is symmetric.

    ``centred`` false keeps the origin: for rows that have no bias to make up for a centre.
    """

    centre_D: Tensor
    directions_DK: Tensor
    beyond_K: Tensor
    floor: Tensor

    def __init__(self, states_ND: Tensor, *, centred: bool) -> None:
        super().__init__()
        states_ND = states_ND.detach().double()
        centre_D = states_ND.mean(dim=0) * float(centred)
        _, sizes_K, directions_KD = torch.linalg.svd(states_ND - centre_D, full_matrices=False)
        variance_K = sizes_K**2 / states_ND.shape[0]
        least = SHRINKAGE * variance_K.sum() / states_ND.shape[1]
        floor = least.rsqrt()
        # W is the floor everywhere, and in the directions that were seen what is beyond it.
        beyond_K = (variance_K + least).rsqrt() - floor
        tensors = {"centre_D": centre_D, "directions_DK": directions_KD.T, "beyond_K": beyond_K}
        for name, tensor in (tensors | {"floor": floor}).items():
            self.register_buffer(name, tensor.float().contiguous(), persistent=False)

    def fold(self, row_D: Tensor) -> Tensor:
        """The row of raw states that gives ``row_D . W x``, ``[D]``."""
        seen_K = self.beyond_K * (row_D @ self.directions_DK)
        return self.floor * row_D + self.directions_DK @ seen_K

"""Matrices laid out for this processor, and the feed-forward blocks made of them.

Legend: N token, I and O a matrix's inputs and outputs, D width, H hidden.

A step multiplies a few rows by every matrix of the model, so it takes as long as reading them does.
oneDNN reads a matrix packed beforehand two to three times faster than the library torch calls for
float32 (docs/log.md); anything but float32 on a processor is left to torch.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

USUAL_ROWS = 16
"""What a matrix is packed for; other numbers of rows work, and are hardly slower."""


def own(weight: Tensor) -> Tensor:
    """A weight in memory of our own; on a processor it may be a release's file, mapped.

    Whoever writes into the folder must not change what a running server answers, and a mapped file
    that becomes shorter ends the process.
    """
    weight = weight.detach()
    return weight.clone() if weight.device.type == "cpu" else weight


class Packed:
    """A matrix; called with rows ``[N, I]`` it gives ``[N, O]``."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._packs = (
            weight_OI.device.type == "cpu"
            and weight_OI.dtype == torch.float32
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )
        if self._packs:
            plain_OI = weight_OI.detach().contiguous()
            self._weight_OI = torch.ops.mkldnn._reorder_linear_weight(plain_OI, USUAL_ROWS)
        else:
            self._weight_OI = own(weight_OI)

    def __call__(self, rows_NI: Tensor) -> Tensor:
        """The product."""
        if not self._packs:
            return functional.linear(rows_NI, self._weight_OI)
        product_NO: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows_NI, self._weight_OI, None, "none", [], ""
        )
        return product_NO

    def clear(self) -> None:
        """Zeroes it: memory that is let go keeps what was in it."""
        if self._packs:
            # Not zero_: it leaves a packed matrix as it was, without a word.
            weight, packed = self._weight_OI, torch.ops.mkldnn
            ctypes.memset(packed.data_ptr(weight), 0, packed._nbytes(weight))
        else:
            self._weight_OI.zero_()


class FeedForward:
    """A dense block: ``down(silu(gate(h)) * up(h))``, the first two matrices as one."""

    def __init__(self, block: Any) -> None:
        self.gate_up = Packed(torch.cat([block.gate_proj.weight, block.up_proj.weight]))
        self.down = Packed(block.down_proj.weight)

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """The block's output, ``[N, D]``."""
        return self.down(_gated(*self.gate_up(hidden_ND).chunk(2, dim=1)))

    def clear(self) -> None:
        """Zeroes its matrices."""
        self.gate_up.clear()
        self.down.clear()


class LowRankFeedForward:
    """The anchor's block with a low-rank delta in each of its matrices."""

    def __init__(self, anchor: FeedForward, block: Any) -> None:
        self._anchor = anchor
        self._gate, self._up, self._down = block.gate_proj, block.up_proj, block.down_proj
        for weight in block.parameters():
            weight.data = own(weight)

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """The block's output, ``[N, D]``."""
        gate_NH, up_NH = self._anchor.gate_up(hidden_ND).chunk(2, dim=1)
        gate_NH = gate_NH + self._gate(hidden_ND)
        inner_NH = _gated(gate_NH, up_NH + self._up(hidden_ND))
        delta_ND: Tensor = self._down(inner_NH)
        return self._anchor.down(inner_NH) + delta_ND

    def clear(self) -> None:
        """Zeroes its own matrices, and not the anchor's."""
        for delta in (self._gate, self._up, self._down):
            for weight in delta.parameters():
                weight.data.zero_()


def _gated(gate_NH: Tensor, up_NH: Tensor) -> Tensor:
    gated_NH: Tensor = functional.silu(gate_NH).mul_(up_NH)
    return gated_NH

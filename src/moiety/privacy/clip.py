"""Per-record clipping by one backward pass.

A trained matrix is multiplied through a tape. Going backward, the tape keeps what the matrix was
fed and the gradient of what it gave; the matrix itself gets no gradient. From these two each
record's gradient norm follows without its gradient, over all trained matrices together, and the
clipped sum of all records is one weighted product a matrix. Norms are float32, whatever the pass
was computed in.

Windows must not touch each other in the model: row ``b`` of what a matrix is fed is window ``b``,
whole. The tape refuses other shapes, as of a mixture whose experts are fed gathered tokens; there
clipping would be per token and the guarantee false.

Legend: B window, R record, T position, N positions of one record, I inputs, O outputs.

Source: ghost norms (Goodfellow 2015; Li et al. 2022, section 4), book-keeping (Bu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from moiety.errors import StateError

Longs = npt.NDArray[np.int64]

_CHUNK_NUMBERS = 2**22
"""Numbers of per-record products that exist at once: 16 MiB, about a cache."""


@dataclass(frozen=True)
class Clipped:
    """Gradients of a micro-batch's records, each clipped over all matrices together, summed.

    ``norms_R`` are the norms before clipping, float64, in the order of the records.
    """

    sums: dict[str, Tensor]
    norms_R: Tensor

    @property
    def num_broken(self) -> int:
        """Records whose gradient was no number; nothing of them is in the sums."""
        return int((~self.norms_R.isfinite()).sum())


@dataclass(frozen=True)
class _Entry:
    fed_BTI: Tensor
    gradient_BTO: Tensor


class Tape:
    """Stands between a model and its trained matrices. One pass forward, one back, one ``clipped``.

    ``parameters`` are all the trained tensors, by name; each must be a matrix used exactly once.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._entries: dict[str, _Entry] = {}
        self._shape: tuple[int, int] | None = None

    def product(self, fed: Tensor, weight: Tensor) -> Tensor:
        """``fed @ weight.T``; outside of a recording an ordinary one."""
        if self._shape is None:
            return functional.linear(fed, weight)
        name = self._names.get(id(weight))
        if name is None:
            raise _refusal("a matrix that is not trained was multiplied on the tape")
        if fed.dim() != 3 or tuple(fed.shape[:2]) != self._shape:
            raise _refusal(
                f"{name} is fed {list(fed.shape)}, not [windows, positions, width]: records could "
                "not be told apart"
            )
        return _taped(fed, weight, self, name)

    @contextmanager
    def recording(self, windows: int, positions: int) -> Iterator[None]:
        """Around one forward and backward pass of this many windows.

        Raises:
            StateError: a trained tensor was reached past the tape, or not reached, or twice.
        """
        self._check_untouched("had a gradient before the pass")
        self._entries.clear()
        self._shape = windows, positions
        try:
            yield
        finally:
            self._shape = None
        self._check_untouched("got a gradient past the tape")
        missing = sorted(self._parameters.keys() - self._entries.keys())
        if missing:
            raise _refusal(f"{missing[0]} was trained but not seen by the tape")

    def record(self, name: str, fed_BTI: Tensor, gradient_BTO: Tensor) -> None:
        """What the backward pass leaves here."""
        if self._shape is None:
            raise _refusal(f"{name} was reached outside of a recording")
        if name in self._entries:
            raise _refusal(f"{name} was used twice in one pass")
        self._entries[name] = _Entry(fed_BTI, gradient_BTO)

    @torch.no_grad()
    def clipped(self, records_B: Longs, clip_norm: float) -> Clipped:
        """The clipped sum of what was recorded; forgets it.

        ``records_B`` says whose window each is; those of one record stand side by side. A record
        whose norm is no number counts as nothing at all.
        """
        begins_R, counts_R = _runs(records_B)
        # Autocast must not reach these products: a norm of half precision bounds nothing.
        device = next(iter(self._entries.values())).fed_BTI.device
        with torch.autocast(device.type, enabled=False):
            squares_R = torch.zeros(len(begins_R), dtype=torch.float64, device=device)
            for entry in self._entries.values():
                squares_R += _squared_norms(entry, begins_R, counts_R)
            norms_R = squares_R.sqrt()
            factors_R = torch.where(norms_R.isfinite(), (clip_norm / norms_R).clamp(max=1.0), 0.0)
            counted = torch.from_numpy(counts_R).to(device)
            factors_B = factors_R.float().repeat_interleave(counted)
            sums = {name: self._weighted(name, factors_B) for name in sorted(self._entries)}
        return Clipped(sums, norms_R)

    def _weighted(self, name: str, factors_B: Tensor) -> Tensor:
        entry = self._entries.pop(name)
        fed_BTI, gradient_BTO = entry.fed_BTI, entry.gradient_BTO
        whole_B = factors_B > 0
        if not whole_B.all():  # zero times no number is no number
            fed_BTI = torch.where(whole_B[:, None, None], fed_BTI, 0.0)
            gradient_BTO = torch.where(whole_B[:, None, None], gradient_BTO, 0.0)
        fed_BTI, gradient_BTO = fed_BTI.float(), gradient_BTO.float()
        if fed_BTI.shape[2] < gradient_BTO.shape[2]:
            fed_BTI = fed_BTI * factors_B[:, None, None]
        else:
            gradient_BTO = gradient_BTO * factors_B[:, None, None]
        return gradient_BTO.flatten(0, 1).T @ fed_BTI.flatten(0, 1)

    def _check_untouched(self, what: str) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                raise _refusal(f"{name} {what}")


class _Taped(torch.autograd.Function):
    """A product whose matrix gets no gradient, but leaves on the tape what gives it."""

    @staticmethod
    def forward(ctx: Any, fed: Tensor, weight: Tensor, tape: Tape, name: str) -> Tensor:
        ctx.dtype = fed.dtype
        kind = fed.device.type
        if torch.is_autocast_enabled(kind):
            fed = fed.to(torch.get_autocast_dtype(kind))
        ctx.save_for_backward(fed, weight)
        ctx.tape, ctx.name = tape, name
        return functional.linear(fed, weight.to(fed.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        fed, weight = ctx.saved_tensors
        ctx.tape.record(ctx.name, fed, gradient)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None, None


def _taped(fed: Tensor, weight: Tensor, tape: Tape, name: str) -> Tensor:
    result: Tensor = _Taped.apply(fed, weight, tape, name)  # type: ignore[no-untyped-call]
    return result


def _runs(records_B: Longs) -> tuple[Longs, Longs]:
    """Where each record's windows begin, and how many there are."""
    begins_R = np.flatnonzero(np.diff(records_B, prepend=-1))
    if len(np.unique(records_B)) != len(begins_R):
        raise ValueError("windows of one record do not stand side by side")
    return begins_R, np.diff(begins_R, append=len(records_B))


def _squared_norms(entry: _Entry, begins_R: Longs, counts_R: Longs) -> Tensor:
    """Squared norms of one matrix's gradient, per record: float64 ``[R]``.

    Windows of a record are summed before the norm is taken, so its positions stand in a row.
    """
    device = entry.fed_BTI.device
    squares_R = torch.empty(len(begins_R), dtype=torch.float64, device=device)
    for count in np.unique(counts_R):
        same = np.flatnonzero(counts_R == count)
        rows = (begins_R[same][:, None] + np.arange(count)).reshape(-1)
        fed, gradient = entry.fed_BTI, entry.gradient_BTO
        if len(rows) < len(fed):
            chosen = torch.from_numpy(rows).to(device)
            fed, gradient = fed[chosen], gradient[chosen]
        norms = _norms(fed.reshape(len(same), -1, fed.shape[2]), gradient)
        squares_R[torch.from_numpy(same).to(device)] = norms
    return squares_R


def _norms(fed_RNI: Tensor, gradient_BTO: Tensor) -> Tensor:
    """The same for records of equally many windows, by Gram matrices or directly, as is less."""
    records, positions, inputs = fed_RNI.shape
    outputs = gradient_BTO.shape[2]
    gradient_RNO = gradient_BTO.reshape(records, positions, outputs)
    by_gram = positions * (inputs + outputs) < inputs * outputs
    size = 2 * positions**2 if by_gram else inputs * outputs
    step = max(1, _CHUNK_NUMBERS // size)
    parts = []
    for at in range(0, records, step):
        fed = fed_RNI[at : at + step].float()
        gradient = gradient_RNO[at : at + step].float()
        if by_gram:
            product = torch.bmm(fed, fed.mT).mul_(torch.bmm(gradient, gradient.mT))
            # Rounding may leave a true zero slightly negative.
            parts.append(product.sum((1, 2), dtype=torch.float64).clamp_(min=0.0))
        else:
            product = torch.bmm(gradient.mT, fed)
            parts.append(torch.linalg.vector_norm(product, dim=(1, 2)).double().square_())
    return torch.cat(parts)


def _refusal(problem: str) -> StateError:
    return StateError(
        f"no privacy could be promised: {problem}",
        remedy="this is a fault of the program, not of your text; report it",
    )

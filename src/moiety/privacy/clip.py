"""Per-record clipping by one backward pass.

A trained matrix is multiplied through a tape. Going backward, the tape sees what the matrix was
fed and the gradient of what it gave; the matrix itself gets no gradient. Of these two it keeps each
record's gradient or, where that is larger, the two themselves, from which the gradient's norm
follows without it. When all matrices were seen, so are the norms, and the clipped sum of all
records is a weighted sum. Norms and sums are float32, whatever the pass was computed in.

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


class Tape:
    """Stands between a model and its trained matrices. One pass forward, one back, one ``clipped``.

    ``parameters`` are all the trained tensors, by name; each must be a matrix used exactly once.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._pass: _Pass | None = None
        self._done: _Pass | None = None

    def product(self, fed: Tensor, weight: Tensor) -> Tensor:
        """``fed @ weight.T``; outside of a recording an ordinary one."""
        if self._pass is None:
            return functional.linear(fed, weight)
        name = self._names.get(id(weight))
        if name is None:
            raise _refusal("a matrix that is not trained was multiplied on the tape")
        if fed.dim() != 3 or tuple(fed.shape[:2]) != self._pass.shape:
            raise _refusal(
                f"{name} is fed {list(fed.shape)}, not [windows, positions, width]: records could "
                "not be told apart"
            )
        return _taped(fed, weight, self, name)

    @contextmanager
    def recording(self, records_B: Longs, positions: int) -> Iterator[None]:
        """Around one forward and backward pass of windows of so many positions.

        ``records_B`` says whose window each is; those of one record stand side by side.

        Raises:
            StateError: a trained tensor was reached past the tape, or not reached, or twice.
        """
        self._check_untouched("had a gradient before the pass")
        done = _Pass(records_B, positions)
        self._pass, self._done = done, None
        try:
            yield
        finally:
            self._pass = None
        self._check_untouched("got a gradient past the tape")
        missing = sorted(self._parameters.keys() - done.parts.keys())
        if missing:
            raise _refusal(f"{missing[0]} was trained but not seen by the tape")
        self._done = done

    def record(self, name: str, fed_BTI: Tensor, gradient_BTO: Tensor) -> None:
        """What the backward pass leaves here."""
        if self._pass is None:
            raise _refusal(f"{name} was reached outside of a recording")
        if name in self._pass.parts:
            raise _refusal(f"{name} was used twice in one pass")
        # Autocast must not reach these products: a norm of half precision bounds nothing.
        with torch.autocast(fed_BTI.device.type, enabled=False):
            self._pass.add(name, fed_BTI, gradient_BTO)

    @torch.no_grad()
    def clipped(self, clip_norm: float) -> Clipped:
        """The clipped sum of what was recorded; forgets it.

        A record whose norm is no number counts as nothing at all.
        """
        done, self._done = self._done, None
        assert done is not None, "nothing was recorded"
        norms_R = done.squares_R.sqrt()
        factors_R = torch.where(norms_R.isfinite(), (clip_norm / norms_R).clamp(max=1.0), 0.0)
        sums = {name: done.weighted(name, factors_R.float()) for name in sorted(done.parts)}
        return Clipped(sums, norms_R)

    def _check_untouched(self, what: str) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                raise _refusal(f"{name} {what}")


class _Pass:
    """What one backward pass left: of each matrix parts, one for records of equally many windows.

    ``squares_R`` grows matrix by matrix: squared norms over all that was seen, float64.
    """

    def __init__(self, records_B: Longs, positions: int) -> None:
        begins_R = np.flatnonzero(np.diff(records_B, prepend=-1))
        if len(np.unique(records_B)) != len(begins_R):
            raise ValueError("windows of one record do not stand side by side")
        counts_R = np.diff(begins_R, append=len(records_B))
        self.shape = len(records_B), positions
        self.squares_R = torch.zeros(len(begins_R), dtype=torch.float64)
        self.parts: dict[str, list[_Part]] = {}
        self._groups = []
        for count in np.unique(counts_R):
            same = np.flatnonzero(counts_R == count)
            rows = begins_R[same][:, None] + np.arange(count)
            self._groups.append((torch.from_numpy(same), torch.from_numpy(rows)))

    def add(self, name: str, fed_BTI: Tensor, gradient_BTO: Tensor) -> None:
        """One matrix. Windows of a record are summed before the norm: its positions are a row."""
        device = fed_BTI.device
        self.squares_R = self.squares_R.to(device)
        self.parts[name] = []
        for same, rows in self._groups:
            fed, gradient = fed_BTI, gradient_BTO
            if rows.numel() < len(fed_BTI):
                chosen = rows.flatten().to(device)
                fed, gradient = fed[chosen], gradient[chosen]
            part = _Part(
                same.to(device),
                fed.reshape(len(same), -1, fed.shape[2]),
                gradient.reshape(len(same), -1, gradient.shape[2]),
            )
            self.squares_R[part.same] += part.squared_norms()
            self.parts[name].append(part)

    def weighted(self, name: str, factors_R: Tensor) -> Tensor:
        """The weighted sum of the records' gradients of one matrix, ``[O, I]``."""
        total, *rest = (part.weighted(factors_R) for part in self.parts.pop(name))
        for more in rest:
            total = total + more
        return total


class _Part:
    """One matrix and records of equally many windows: their gradients, or what gives them.

    Whichever takes less work takes less memory too: a record's gradient has I x O numbers, and what
    it is a product of N x (I + O).
    """

    def __init__(self, same: Tensor, fed_RNI: Tensor, gradient_RNO: Tensor) -> None:
        self.same = same
        _, positions, inputs = fed_RNI.shape
        outputs = gradient_RNO.shape[2]
        self._products_ROI: Tensor | None = None
        if inputs * outputs <= positions * (inputs + outputs):
            # In the pass's own precision, as autograd would. What is normed is what is summed, so
            # the bound holds for the rounded gradients themselves.
            self._products_ROI = torch.bmm(gradient_RNO.mT, fed_RNI)
        else:
            self._fed_RNI, self._gradient_RNO = fed_RNI, gradient_RNO

    def squared_norms(self) -> Tensor:
        """Squared norms of the gradients, float64 ``[R]``: directly, or by Gram matrices."""
        if self._products_ROI is not None:
            norms_R: Tensor = torch.linalg.vector_norm(
                self._products_ROI, dim=(1, 2), dtype=torch.float32
            )
            return norms_R.double().square_()
        records, positions, _ = self._fed_RNI.shape
        step = max(1, _CHUNK_NUMBERS // (2 * positions**2))
        parts = []
        for at in range(0, records, step):
            fed = self._fed_RNI[at : at + step].float()
            gradient = self._gradient_RNO[at : at + step].float()
            gram_RNN = torch.bmm(fed, fed.mT).mul_(torch.bmm(gradient, gradient.mT))
            # Rounding may leave a true zero slightly negative.
            parts.append(gram_RNN.sum((1, 2), dtype=torch.float64).clamp_(min=0.0))
        return torch.cat(parts)

    def weighted(self, factors_R: Tensor) -> Tensor:
        """The weighted sum of these records' gradients, ``[O, I]``; weight 0 is left out."""
        factors = factors_R[self.same]
        whole = factors > 0
        every = bool(whole.all())  # zero times no number is no number
        if self._products_ROI is not None:
            products = self._products_ROI if every else self._products_ROI[whole]
            direct_OI: Tensor = (factors[whole] @ products.flatten(1).float()).view(
                products.shape[1:]
            )
            return direct_OI
        fed, gradient = self._fed_RNI, self._gradient_RNO
        if not every:
            fed, gradient, factors = fed[whole], gradient[whole], factors[whole]
        fed, gradient = fed.float(), gradient.float()
        if fed.shape[2] < gradient.shape[2]:
            fed = fed * factors[:, None, None]
        else:
            gradient = gradient * factors[:, None, None]
        summed_OI: Tensor = gradient.flatten(0, 1).T @ fed.flatten(0, 1)
        return summed_OI


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


def _refusal(problem: str) -> StateError:
    return StateError(
        f"no privacy could be promised: {problem}",
        remedy="this is a fault of the program, not of your text; report it",
    )

"""What a run spends: two accountants of ``dp-accounting``, and the noise that fits a budget.

Source: privacy loss distributions (Koskela et al. 2020, Doroshenko et al. 2022), which are tight up
to a rounding that only overstates; Rényi differential privacy (Mironov 2017), looser, beside it.
Neighbours differ by one record that is added or removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from moiety.errors import ConfigError

NAME = "privacy loss distributions"
RELATION = "add or remove one record"

_ROUGHLY, _CLOSELY = 0.1, 4e-3
"""Part of the budget that a calibration may leave unspent."""

_COARSE, _FINE = 1e-3, 2e-4
"""Steps to which privacy losses are rounded. A coarser one is quicker and overstates more, so noise
that was found with it keeps the budget."""

_LEAST_NOISE, _MOST_NOISE = 0.2, 1e5
"""Beyond these the accountants' own rounding decides."""

_MOST_LOOKS = 24
_ORDERS = [*range(2, 64), 80, 96, 128, 256, 512, 1024]
_FINE_ORDERS = [*(tenth / 10 for tenth in range(20, 110)), *_ORDERS[9:]]
"""Orders below 2 are left out: there the series is slow and often does not converge."""


@dataclass(frozen=True)
class Mechanisms:
    """Everything that touches private text in a run, and how many such runs there were."""

    sampling_rate: float
    noise_multiplier: float
    steps: int
    table_noise_multiplier: float
    runs: int = 1

    def event(self) -> Any:
        """The same in the words of ``dp-accounting``."""
        import dp_accounting as dp

        step = dp.PoissonSampledDpEvent(
            self.sampling_rate, dp.GaussianDpEvent(self.noise_multiplier)
        )
        table = dp.GaussianDpEvent(self.table_noise_multiplier)
        return dp.ComposedDpEvent(
            [
                dp.SelfComposedDpEvent(step, self.steps * self.runs),
                dp.SelfComposedDpEvent(table, self.runs),
            ]
        )


@dataclass(frozen=True)
class Spent:
    """Epsilon at one delta, by both accountants."""

    epsilon: float
    epsilon_rdp: float


def accountant_version() -> str:
    """Which software counted."""
    return f"dp-accounting {version('dp-accounting')}"


def spent(mechanisms: Mechanisms, delta: float) -> Spent:
    """What these mechanisms spend together."""
    event = mechanisms.event()
    return Spent(_epsilon(_fine_pld, event, delta), _epsilon(_fine_rdp, event, delta))


def table_noise(epsilon: float, delta: float, runs: int) -> float:
    """The noise multiplier with which ``runs`` tables spend at most this budget.

    Raises:
        ConfigError: no noise is enough.
    """
    import dp_accounting as dp

    def event(noise: float) -> Any:
        return dp.SelfComposedDpEvent(dp.GaussianDpEvent(noise), runs)

    return _least_noise(event, epsilon, delta)


def step_noise(
    epsilon: float, delta: float, *, rate: float, steps: int, table_noise: float, runs: int
) -> float:
    """The noise multiplier with which all mechanisms together spend at most this budget.

    Raises:
        ConfigError: no noise is enough.
    """

    def event(noise: float) -> Any:
        return Mechanisms(rate, noise, steps, table_noise, runs).event()

    return _least_noise(event, epsilon, delta)


def _least_noise(event: Callable[[float], Any], epsilon: float, delta: float) -> float:
    """The quick accountant says about where, the tight one how much."""
    if epsilon == 0:  # a share of a positive one so small that it was rounded away
        raise _beyond_all_noise(epsilon, delta)
    begin = _search(_rdp, event, epsilon, delta, 1.0, _ROUGHLY)
    return _search(_pld, event, epsilon, delta, begin, _CLOSELY)


def _search(
    make: Callable[[], Any],
    event: Callable[[float], Any],
    epsilon: float,
    delta: float,
    noise: float,
    waste: float,
) -> float:
    """The least noise found that keeps the budget; the epsilon it leaves unspent is ``waste``.

    Epsilon falls with the noise about as a power of it, so a few secants in logarithms find it. A
    guess that leaves the bracket is replaced by its middle.
    """
    lower, upper, slope = 0.0, math.inf, -1.0
    before: tuple[float, float] | None = None
    for _ in range(_MOST_LOOKS):
        found = _epsilon(make, event(noise), delta)
        if found <= epsilon:
            upper = noise
        else:
            lower = noise
        if epsilon * (1 - waste) <= found <= epsilon or upper <= _LEAST_NOISE:
            return upper
        if before and found > 0 and found != before[1]:
            measured = math.log(found / before[1]) / math.log(noise / before[0])
            slope = min(-0.3, max(-4.0, measured))
        before = (noise, found) if 0 < found < math.inf else None
        share = min(8.0, max(0.125, found / (epsilon * (1 - waste / 2))))
        noise *= share ** (-1 / slope)
        if not lower < noise < upper:
            noise = (lower + upper) / 2 if lower else upper / 2
        if noise > _MOST_NOISE:
            break
    if upper == math.inf:
        raise _beyond_all_noise(epsilon, delta)
    return upper


def _beyond_all_noise(epsilon: float, delta: float) -> ConfigError:
    return ConfigError(
        f"epsilon {epsilon:g} at delta {delta:g} would take more noise than any text outweighs",
        where="privacy.epsilon",
        remedy="allow a larger epsilon or delta, fewer steps, or count fewer runs",
    )


def _epsilon(make: Callable[[], Any], event: Any, delta: float) -> float:
    return float(make().compose(event).get_epsilon(delta))


def _pld() -> Any:
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(value_discretization_interval=_COARSE)


def _fine_pld() -> Any:
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(value_discretization_interval=_FINE)


def _rdp() -> Any:
    from dp_accounting.rdp import RdpAccountant

    return RdpAccountant(orders=_ORDERS)


def _fine_rdp() -> Any:
    from dp_accounting.rdp import RdpAccountant

    return RdpAccountant(orders=_FINE_ORDERS)

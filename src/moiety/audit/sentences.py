"""Numbers and views as a verdict's sentences name them: to be read by people who judge by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from moiety.bundle import audits

WHO: Final[Mapping[audits.View, str]] = {
    "anchor": "the public model",
    "expert": "the expert alone",
    "pair": "the pair of public model and expert",
    "release": "the release",
    "withdrawn": "the release after the withdrawal",
    "control": "the overfitted control",
}


def interval(number: audits.Estimate, show: Callable[[float], str]) -> str:
    """The 95 % interval of a number."""
    return f"(95 % interval: {show(number.low)} to {show(number.high)})"


def than_the_public_model(excess: audits.Estimate) -> str:
    """A difference of shares, and its interval in the same direction."""
    low, value, high = (_in_hundred(end) for end in (excess.low, excess.value, excess.high))
    if value == 0:
        return f"as the public model does (95 % interval of the difference: {low} to {high} points)"
    more = "more" if value > 0 else "less"
    low, high = (low, high) if value > 0 else (0.0 - high, 0.0 - low)
    return (
        f"{abs(value)} percentage points {more} than the public model "
        f"(95 % interval: {low} to {high})"
    )


def _in_hundred(share: float) -> float:
    return round(100 * share, 1) + 0.0  # never -0.0


def percent(share: float) -> str:
    """A share."""
    return f"{_in_hundred(share)} %"


def points(share: float) -> str:
    """A difference of shares."""
    return f"{_in_hundred(share):g} percentage points"


def tokens(count: float) -> str:
    """So many tokens."""
    return f"{count:,.0f} token" + ("" if count == 1 else "s")


def bits(bits: float) -> str:
    """So many bits."""
    return f"{two_digits(bits)} bits"


def two_digits(number: float) -> str:
    """A number to two digits."""
    return f"{number:.2f}"


def plain(number: float) -> str:
    """An epsilon: three digits say enough."""
    return f"{number:.3g}"

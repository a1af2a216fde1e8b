"""A verified object that nobody verified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moiety.bundle import VerifiedBundle, orders
from moiety.bundle.manifests import VerifiedManifest


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (VerifiedBundle, 5),
        (VerifiedManifest, 5),
        (orders.VerifiedOrder, 4),
        (orders.VerifiedReceipt, 4),
    ],
)
@pytest.mark.parametrize("seal", [None, object(), True, "SEAL"])
def test_a_verified_type_has_no_other_maker(
    kind: Callable[..., Any], count: int, seal: object
) -> None:
    with pytest.raises(TypeError, match="made by verifying"):
        kind(seal, *[None] * (count - 1))

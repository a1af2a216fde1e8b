"""Numbers that are no sizes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError


@pytest.mark.parametrize("rank", [0, -1, 9, 10**9, 2**70, 2.0, True, "2", [2]])
def test_an_absurd_rank_is_refused(lowrank: Target, rank: object) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        manifest["rank"] = manifest["recipe"]["rank"] = rank

    lowrank.change_manifest(lie)
    lowrank.refused(FormatError, "rank")


def test_two_ranks_are_refused(lowrank: Target) -> None:
    lowrank.change_manifest(lambda manifest: manifest["recipe"].update(rank=3))
    lowrank.refused(FormatError, "two ranks")


@pytest.mark.parametrize("field", ["num_layers", "width", "hidden", "vocab"])
@pytest.mark.parametrize("value", [0, -1, 2**62, 10**400, 1e308, True])
def test_an_absurd_size_is_refused(target: Target, field: str, value: object) -> None:
    target.change_manifest(lambda manifest: manifest.update({field: value}))
    target.refused(FormatError, "not a Manifest")


def test_a_number_of_many_digits_is_refused(target: Target) -> None:
    target.change_text('"num_layers":2', '"num_layers":' + "9" * 100_000)
    target.refused(FormatError, "not JSON")

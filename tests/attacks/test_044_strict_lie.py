"""A release whose tables were tuned, and whose roster or card says that they were not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from tests.attacks.tuned_world import TunedWorld, seal

from moiety.errors import IntegrityError, TrustError
from moiety.merge import open_release


def test_strict_beside_a_tuning_is_refused(tuned_world: TunedWorld) -> None:
    seal(tuned_world.tuned, lambda roster: roster.update(strict=True))
    with pytest.raises(TrustError, match="never both"):
        open_release(tuned_world.tuned)


def test_not_strict_without_a_reason_is_refused(tuned_world: TunedWorld) -> None:
    seal(tuned_world.strict, lambda roster: roster.update(strict=False))
    with pytest.raises(TrustError, match="never both"):
        open_release(tuned_world.strict)


def test_tuned_tables_passed_off_as_the_owners_own_are_refused(tuned_world: TunedWorld) -> None:
    """The roster of a strict release, made to fit the tuned tables: owners signed other ones."""
    folder = tuned_world.tuned
    shutil.rmtree(folder / "untuned")

    def pretend(roster: dict[str, Any]) -> None:
        tuned = roster.pop("tuning")["evidence"]
        for expert, digest in zip(roster["experts"], tuned, strict=True):
            expert["evidence"] = digest
        roster["strict"] = True
        for name in [name for name in roster["files"] if name.startswith("untuned/")]:
            del roster["files"][name]

    seal(folder, pretend)
    with pytest.raises(IntegrityError, match="not the tensor that was signed"):
        open_release(folder)


def test_a_null_tuning_is_not_the_one_spelling(tuned_world: TunedWorld) -> None:
    seal(tuned_world.strict, lambda roster: roster.update(tuning=None))
    with pytest.raises(TrustError, match="canonical"):
        open_release(tuned_world.strict)


@pytest.mark.parametrize(
    "change",
    [
        lambda tuning: tuning.update(reason="It is quite strict really."),
        lambda tuning: tuning.update(reason=""),
        lambda tuning: tuning.update(note="hello"),
        lambda tuning: tuning.update(steps=-1),
        lambda tuning: tuning.update(proxies={}),
        lambda tuning: tuning["proxies"].update(zoe=tuning["proxies"]["victim"]),
        lambda tuning: tuning["proxies"].update(anchor=tuning["proxies"]["victim"]),
        lambda tuning: tuning["evidence"].pop(),
        lambda tuning: tuning["evidence"].append(tuning["evidence"][1]),
        lambda tuning: tuning["evidence"].__setitem__(1, None),
        lambda tuning: tuning["evidence"].__setitem__(1, tuning["evidence"][2]),
        lambda tuning: tuning.pop("evidence"),
    ],
)
def test_a_tuning_out_of_form_is_refused(
    tuned_world: TunedWorld, change: Callable[[dict[str, Any]], object]
) -> None:
    seal(tuned_world.tuned, lambda roster: change(roster["tuning"]))
    with pytest.raises(TrustError):
        open_release(tuned_world.tuned)


def test_a_card_that_hides_it_is_refused(tuned_world: TunedWorld) -> None:
    shutil.copy(tuned_world.strict / "README.md", tuned_world.tuned / "README.md")
    seal(tuned_world.tuned, lambda _: None)
    with pytest.raises(IntegrityError, match="card hides"):
        open_release(tuned_world.tuned)


def test_without_a_lie_it_holds(tuned_world: TunedWorld) -> None:
    for folder in (tuned_world.strict, tuned_world.tuned):
        seal(folder, lambda _: None)
        open_release(folder)
    assert json.loads((tuned_world.tuned / "roster.json").read_bytes())["strict"] is False

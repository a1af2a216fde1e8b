"""Well-formed proxies that do not belong to the release, or not to whom they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.attacks.tuned_world import TunedWorld
from tests.merge.tunings import noisy_tables, write_proxies

from moiety.bundle import orders
from moiety.errors import PolicyError, SignatureError, TrustError
from moiety.merge import open_release, tuned


def refused(
    world: TunedWorld, kind: type[TrustError], match: str, *proxies: orders.VerifiedProxies
) -> None:
    out = world.strict.parent / "new"
    with pytest.raises(kind, match=match):
        tuned.check_proxies(open_release(world.strict), proxies)
    with pytest.raises(kind, match=match):
        tuned.write_tuned(world.strict, out, noisy_tables(world.strict), proxies, steps=1)
    assert not out.exists()


@pytest.fixture
def paper(tuned_world: TunedWorld, tmp_path: Path) -> Any:
    def write(owner: str, name: str = "p.json", **changes: Any) -> orders.VerifiedProxies:
        return write_proxies(tuned_world.anchor, owner, tmp_path / name, **changes)

    return write


def test_of_another_anchor(tuned_world: TunedWorld, home: Path, tmp_path: Path) -> None:
    other = write_proxies(home / "other-anchor", "victim", tmp_path / "p.json")
    refused(tuned_world, PolicyError, "another anchor", other)


def test_of_another_sample(tuned_world: TunedWorld, paper: Any) -> None:
    refused(tuned_world, PolicyError, "another public sample", paper("victim", sample_documents=9))


def test_of_somebody_who_is_not_in_the_release(tuned_world: TunedWorld, paper: Any) -> None:
    refused(tuned_world, PolicyError, "no expert called 'lowrank'", paper("lowrank"))


def test_signed_by_another_owner(tuned_world: TunedWorld, paper: Any, home: Path) -> None:
    borrowed = paper("victim", key=home / "mallory.pem")
    refused(tuned_world, SignatureError, "signed by", borrowed)


def test_twice(tuned_world: TunedWorld, paper: Any, home: Path) -> None:
    twice = [paper("victim"), paper("victim", "q.json", key=home / "victim.pem")]
    refused(tuned_world, PolicyError, "two papers", *twice)


def test_none_at_all(tuned_world: TunedWorld) -> None:
    refused(tuned_world, PolicyError, "no proxies")


def test_made_by_hand(home: Path) -> None:
    with pytest.raises(TypeError, match="never by hand"):
        orders.VerifiedProxies(None, None, None, b"")  # type: ignore[arg-type]

"""Law 3: what remains after a withdrawal is the merge that never had the expert, byte for byte."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.worlds import RANKS, World, assert_same_tree, merged, tree

from moiety.merge import admit, verify_release
from moiety.merge.withdrawal import verify_receipt_against, withdraw
from moiety.tensors import open_tensors

OWNERS = sorted(RANKS)
LAW = settings(max_examples=10, deadline=None, derandomize=True)

teams = st.lists(st.sampled_from(OWNERS), unique=True, max_size=4)
teams_of_some = st.lists(st.sampled_from(OWNERS), unique=True, min_size=1, max_size=4)
dtypes = st.sampled_from(["F32", "BF16"])
top_ks = st.sampled_from([None, 1, 2, 4])


@LAW
@given(team=teams, dtype=dtypes, data=st.data())
def test_the_order_of_bundles_does_not_matter(
    worlds: dict[str, World], team: list[str], dtype: str, data: st.DataObject
) -> None:
    other = data.draw(st.permutations(team))
    with tempfile.TemporaryDirectory() as folder:
        one = merged(worlds[dtype], team, Path(folder) / "one")
        two = merged(worlds[dtype], other, Path(folder) / "two")
        assert_same_tree(one, two)


@LAW
@given(team=teams_of_some, dtype=dtypes, top_k=top_ks, data=st.data())
def test_withdrawal_equals_the_merge_that_never_had_the_expert(
    worlds: dict[str, World],
    team: list[str],
    dtype: str,
    top_k: int | None,
    data: st.DataObject,
) -> None:
    leaver = data.draw(st.sampled_from(team))
    world = worlds[dtype]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = merged(world, team, folder / "whole", top_k=top_k)
        stayers = [owner for owner in team if owner != leaver]
        never = merged(world, stayers, folder / "never", top_k=top_k)
        done = withdraw(
            whole,
            leaver,
            world.order(leaver, folder / "order.json"),
            out=folder / "after",
            key=worlds["F32"].folder / "coordinator.pem",
        )
        assert_same_tree(never, folder / "after")
        assert verify_release(folder / "after").digest == done.digest
        verify_receipt_against(done.receipt, folder / "after")


@LAW
@given(team=teams_of_some, dtype=dtypes, top_k=top_ks, data=st.data())
def test_admission_equals_the_merge_that_always_had_the_expert(
    worlds: dict[str, World],
    team: list[str],
    dtype: str,
    top_k: int | None,
    data: st.DataObject,
) -> None:
    joiner = data.draw(st.sampled_from(team))
    world = worlds[dtype]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = [owner for owner in team if owner != joiner]
        first = merged(world, before, folder / "first", top_k=top_k)
        always = merged(world, team, folder / "always", top_k=top_k)
        admit(first, world.bundles[joiner], folder / "grown")
        assert_same_tree(always, folder / "grown")
        withdraw(
            folder / "grown",
            joiner,
            world.order(joiner, folder / "order.json"),
            out=folder / "again",
            key=worlds["F32"].folder / "coordinator.pem",
        )
        assert_same_tree(first, folder / "again")


def test_leaving_one_by_one_in_any_order_ends_at_the_anchor_alone(
    worlds: dict[str, World], place: Path
) -> None:
    world, team = worlds["F32"], ["amy", "bob", "cat"]
    alone = merged(world, [], place / "alone")
    for round_number, leavers in enumerate(itertools.permutations(team)):
        release = merged(world, team, place / f"release-{round_number}")
        for leaver in leavers:
            name = f"{round_number}-{leaver}"
            withdraw(
                release,
                leaver,
                world.order(leaver, place / f"order-{name}"),
                in_place=True,
                key=worlds["F32"].folder / "coordinator.pem",
                receipt=place / f"receipt-{name}",
            )
        assert_same_tree(alone, release)


@pytest.mark.parametrize("leaver", OWNERS)
def test_nothing_of_the_withdrawn_expert_occurs_in_what_remains(
    worlds: dict[str, World], place: Path, leaver: str
) -> None:
    world = worlds["F32"]
    whole = merged(world, OWNERS, place / "whole")
    withdraw(
        whole,
        leaver,
        world.order(leaver, place / "order"),
        out=place / "after",
        key=worlds["F32"].folder / "coordinator.pem",
    )
    gone = raw_tensors(world.bundles[leaver] / "expert.safetensors")
    gone += raw_tensors(whole / f"expert-{leaver}.safetensors")
    gone += [(world.bundles[leaver] / "manifest.json").read_bytes(), f'"{leaver}"'.encode()]
    remaining = b"".join(tree(place / "after").values())
    assert [data[:80] for data in gone if data in remaining] == []
    assert gone[-1] in (whole / "roster.json").read_bytes()
    assert not any(leaver in name for name in tree(place / "after"))


def raw_tensors(path: Path) -> list[bytes]:
    with open_tensors(path) as file:
        return [b"".join(bytes(block) for block in file.blocks(name)) for name in file.spans]


def test_what_does_not_change_is_linked(worlds: dict[str, World], place: Path) -> None:
    world = worlds["F32"]
    whole = merged(world, OWNERS, place / "whole")
    withdraw(
        whole,
        "bob",
        world.order("bob", place / "order"),
        out=place / "after",
        key=worlds["F32"].folder / "coordinator.pem",
    )
    linked = {
        name for name in tree(place / "after") if (whole / name).samefile(place / "after" / name)
    }
    still = {"shared.safetensors", "expert-anchor.safetensors", "expert-amy.safetensors"}
    # Whole matrices are named after their slot, which is another now; factors are not.
    assert still | {"expert-dan.safetensors"} <= linked
    assert linked.isdisjoint({"expert-cat.safetensors", "evidence.safetensors", "roster.json"})

"""Law 11: tuning changes tables and nothing else, and whoever leaves, joins or goes back
finds the strict release again, byte for byte, as if there had been no tuning."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.tunings import tune, write_proxies
from tests.merge.worlds import RANKS, World, assert_same_tree, merged, tree

from moiety.merge import admit, tuned, verify_release
from moiety.merge.withdrawal import removed_digests, verify_receipt_against, withdraw

OWNERS = sorted(RANKS)
LAW = settings(max_examples=8, deadline=None, derandomize=True)

teams = st.lists(st.sampled_from(OWNERS), unique=True, min_size=1, max_size=4)
dtypes = st.sampled_from(["F32", "BF16"])
top_ks = st.sampled_from([None, 1, 3])


def tuned_from(world: World, release: Path, owner: str, out: Path) -> Path:
    """A tuned release, with proxies of one owner."""
    paper = write_proxies(world.anchor, owner, out.with_suffix(".json"), world.key(owner))
    tune(release, out, paper)
    return out


@LAW
@given(team=teams, dtype=dtypes, top_k=top_ks, data=st.data())
def test_whoever_leaves_a_tuned_release_leaves_the_merge_that_never_had_them(
    worlds: dict[str, World],
    team: list[str],
    dtype: str,
    top_k: int | None,
    data: st.DataObject,
) -> None:
    world, leaver = worlds[dtype], data.draw(st.sampled_from(team))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = merged(world, team, folder / "whole", top_k)
        tuned_from(world, whole, data.draw(st.sampled_from(team)), folder / "tuned")
        never = merged(world, [o for o in team if o != leaver], folder / "never", top_k)
        done = withdraw(
            folder / "tuned",
            leaver,
            world.order(leaver, folder / "order.json"),
            out=folder / "after",
            key=worlds["F32"].folder / "coordinator.pem",
        )
        assert_same_tree(never, folder / "after")
        receipt = verify_receipt_against(done.receipt, folder / "after").receipt
        assert receipt.roster_before == verify_release(folder / "tuned").digest
        assert any("tuned" in flag for flag in done.flags)


@LAW
@given(team=teams, dtype=dtypes, top_k=top_ks)
def test_untuning_gives_the_release_that_was_tuned(
    worlds: dict[str, World], team: list[str], dtype: str, top_k: int | None
) -> None:
    world = worlds[dtype]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        strict = merged(world, team, folder / "strict", top_k)
        tuned_from(world, strict, team[0], folder / "tuned")
        tuned.untune(folder / "tuned", folder / "back")
        assert_same_tree(strict, folder / "back")


@LAW
@given(team=teams, dtype=dtypes, top_k=top_ks)
def test_tuning_changes_tables_and_what_is_said_of_them_and_no_more(
    worlds: dict[str, World], team: list[str], dtype: str, top_k: int | None
) -> None:
    world = worlds[dtype]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        strict = merged(world, team, folder / "strict", top_k)
        before, after = tree(strict), tree(tuned_from(world, strict, team[0], folder / "tuned"))
        tables = "evidence.safetensors"
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {tables, "README.md", "roster.json"}
        assert after.keys() - before.keys() == {f"untuned/{tables}"}
        assert after[f"untuned/{tables}"] == before[tables]
        said, told = json.loads(before["roster.json"]), json.loads(after["roster.json"])
        assert told["experts"] == said["experts"]
        assert told["shards"] == said["shards"]
        assert "tuning" not in said
        assert (said["strict"], told["strict"]) == (True, False)
        assert told["tuning"]["reason"].encode() in after["README.md"]
        verify_release(folder / "tuned")


def test_whoever_joins_a_tuned_release_joins_the_strict_one(
    worlds: dict[str, World], place: Path
) -> None:
    world = worlds["F32"]
    strict = merged(world, ["amy", "bob"], place / "strict", None)
    tuned_from(world, strict, "amy", place / "tuned")
    done = admit(place / "tuned", world.bundles["dan"], place / "grown")
    assert_same_tree(merged(world, ["amy", "bob", "dan"], place / "always", None), place / "grown")
    assert any("tuned" in flag for flag in done.flags)


def test_a_receipt_names_both_tables_of_whoever_left(worlds: dict[str, World], place: Path) -> None:
    world = worlds["F32"]
    strict = merged(world, OWNERS, place / "strict", None)
    release = verify_release(tuned_from(world, strict, "cat", place / "tuned"))
    removed = removed_digests(release, release.expert("bob"))
    assert removed["evidence.2"] == release.roster.tuning.evidence[2]
    assert removed["untuned.evidence.2"] == release.expert("bob").evidence
    assert len(set(removed.values())) == len(removed)


def test_nothing_of_whoever_left_occurs_in_what_remains(
    worlds: dict[str, World], place: Path
) -> None:
    world = worlds["F32"]
    strict = merged(world, OWNERS, place / "strict", None)
    tuned_from(world, strict, "bob", place / "tuned")
    withdraw(
        place / "tuned",
        "bob",
        world.order("bob", place / "order"),
        in_place=True,
        key=worlds["F32"].folder / "coordinator.pem",
        receipt=place / "receipt",
    )
    remaining = b"".join(tree(place / "tuned").values())
    assert b'"bob"' not in remaining
    assert b"tuning" not in remaining
    assert not any("untuned" in name for name in tree(place / "tuned"))

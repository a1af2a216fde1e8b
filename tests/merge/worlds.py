"""One anchor and its owners, made once for a whole test module, and trees compared byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests import makers

from moiety.bundle import orders
from moiety.merge import merge

RANKS = {"amy": None, "bob": 2, "cat": None, "dan": 3}


@dataclass(frozen=True)
class World:
    """An anchor, and a bundle and a key of each owner."""

    folder: Path
    anchor: Path
    bundles: dict[str, Path]

    def key(self, owner: str) -> Path:
        return self.folder / f"{owner}.pem"

    def order(self, owner: str, out: Path) -> Path:
        orders.write_order(self.bundles[owner], self.key(owner), out)
        return out


def make_world(folder: Path, dtype: str = "F32", expert_dtype: str = "F32") -> World:
    anchor = makers.make_anchor(folder / "anchor", dtype=dtype, shards=2)
    bundles = {
        owner: makers.make_bundle(folder, anchor, owner, rank, seed, expert_dtype)
        for seed, (owner, rank) in enumerate(RANKS.items(), start=1)
    }
    return World(folder, anchor, bundles)


def merged(world: World, team: list[str], out: Path, top_k: int | None = None) -> Path:
    """The release of these owners, at ``out``."""
    merge(world.anchor, [world.bundles[name] for name in team], out, top_k=top_k)
    return out


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_tree(left: Path, right: Path) -> None:
    ours, theirs = tree(left), tree(right)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []

"""``merge --top-k auto`` at the command line: the table and the JSON line tell the same numbers."""

from __future__ import annotations

from moiety.merge import open_release


def test_the_table_shows_every_number_and_the_choice(moiety, tiny_world, tmp_path):
    bundles = [tiny_world.bundles[owner] for owner in ("amy", "bob")]
    words = ["--top-k", "auto", "--out", tmp_path / "release", "--json"]
    said = moiety("merge", tiny_world.anchor, *bundles, *words)
    assert said.code == 0, said.err
    sweep = said.json["sweep"]
    lines = [" ".join(line.replace("│", " ").split()) for line in said.out.splitlines()]
    for one in sweep["trials"]:
        row = f"{one['top_k']} {one['bits']:.3f} {one['bits'] - sweep['anchor']:+.3f}"
        (found,) = [line for line in lines if line.startswith(row)]
        assert f" {one['flops'] / sweep['anchor_flops']:.2f}" in found
        assert found.endswith("chosen") == (one["top_k"] == sweep["top_k"])
    for one in sweep["owners"]:
        assert (
            f"{one['owner']} beside the anchor, on public text: {one['found']:+.3f}, "
            f"published {one['published']:+.3f}"
        ) in lines
    assert open_release(tmp_path / "release").roster.top_k == sweep["top_k"]


def test_a_number_that_is_none_exits_2(moiety, tiny_world, tmp_path):
    for wrong in ("many", "0", "Auto"):
        words = ["--top-k", wrong, "--out", tmp_path / "release"]
        assert moiety("merge", tiny_world.anchor, tiny_world.bundles["amy"], *words).code == 2
    assert not (tmp_path / "release").exists()

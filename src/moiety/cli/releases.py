"""``moiety merge``, ``withdraw``, ``admit``, ``export``: the coordinator's deeds. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from moiety.cli import screen
from moiety.cli.options import AsJson, NewFolder, ReleaseFolder, names_in
from moiety.errors import ConfigError

Keys = Annotated[
    list[Path] | None, typer.Option("--key", help="KEY.pub of an owner you accept; repeatable.")
]


def _top_k(text: str) -> int | str:
    return text if text == "auto" else int(text)


def merge(
    anchor: Annotated[Path, typer.Argument(help="The anchor's folder.")],
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Owners' bundles.")],
    out: NewFolder,
    top_k: Annotated[
        Any,
        typer.Option(
            parser=_top_k,
            metavar="N|auto",
            help="Experts a token uses; default: all, at most 5; auto: tried out on public text.",
        ),
    ] = None,
    key: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Verify bundles of owners who never met and merge them into one release.

    Same inputs give the same bytes, in whatever order they are named.

    --top-k auto judges the release on held-out text of the anchor's public sample with 1, 2, 3 and
    more experts a token, prints the table, and takes the smallest number from 2 on that costs at
    most 0.002 bits per byte more than the best. Public text says nothing about owners' text: look
    at both with eval.

    Example: moiety merge anchor/ hospital.expert court.expert --out release/
    """
    from moiety.merge import merge as merge_bundles

    allowed = _allowed(key)
    with _merge_bar(top_k) as (advance, watch):
        done = merge_bundles(
            anchor,
            bundles,
            out,
            top_k=top_k,
            keys=allowed,
            progress=advance,
            watch=watch,
        )
    if done.sweep is not None:
        _tell_sweep(done.sweep)
    _tell(asdict(done), as_json)


@contextmanager
def _merge_bar(top_k: Any) -> Iterator[Any]:
    """One bar for both parts of a merge: bytes written and, with ``auto``, numbers tried out."""
    if top_k != "auto":
        with screen.byte_bar("merging") as advance:
            yield advance, None
        return
    screen.quiet_libraries()
    with screen.cell_bar("merging") as watch:
        yield lambda done, total: watch("MB written", done // 10**6, total // 10**6), watch


def admit(
    release: ReleaseFolder,
    bundle: Annotated[Path, typer.Argument(help="The bundle of an owner who joins.")],
    out: NewFolder,
    key: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Add an owner: byte for byte the merge that always had it.

    Example: moiety admit release/ bank.expert --out release-2/
    """
    from moiety.merge import admit as admit_bundle

    with screen.byte_bar("admitting") as advance:
        done = admit_bundle(release, bundle, out, keys=_allowed(key), progress=advance)
    _tell(asdict(done), as_json)


def withdraw(
    release: ReleaseFolder,
    name: Annotated[str, typer.Argument(help="The owner who leaves.")],
    order: Annotated[Path, typer.Option(help="The owner's signed order.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the new release.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the release itself.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="Coordinator's key for the receipt; default ~/.moiety/coordinator.pem."),
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(help="Where the receipt goes; default beside the release.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take an owner out, exactly: byte for byte the merge that never had the expert.

    The order must be signed by the key that signed the bundle. A signed receipt is written.

    Example: moiety withdraw release/ hospital --order order.json --out release-2/
    """
    from moiety.merge import withdrawal

    with screen.byte_bar("withdrawing") as advance:
        done = withdrawal.withdraw(
            release,
            name,
            order,
            out=out,
            in_place=in_place,
            key=key,
            receipt=receipt,
            progress=advance,
        )
    _tell_withdrawal(name, done, as_json)


def export(
    release: ReleaseFolder,
    out: NewFolder,
    experts: Annotated[
        str | None, typer.Option(help="A,B: only these owners' experts (and the anchor).")
    ] = None,
    dense: Annotated[
        str | None, typer.Option(help="One expert, or anchor, as a dense model without a router.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint that stock transformers and vLLM load, without any code of ours.

    It gathers the evidence itself and routes as moiety does: the same model, one layer deeper and
    some heads wider. With --dense it is one expert alone, an ordinary OLMo 2 that declines nothing.

    Nothing in an export can be withdrawn: when an owner leaves, delete it and export anew.

    Example: moiety export release/ --out plain/

    Example: moiety export release/ --experts hospital,court --out plain/

    Example: moiety export release/ --dense hospital --out dense/
    """
    from moiety.merge import exporting

    if experts is not None and dense is not None:
        raise ConfigError("--experts and --dense exclude each other", remedy="give one of them")
    if dense is not None:
        with screen.byte_bar("exporting") as advance:
            made = exporting.export_dense(release, dense, out, progress=advance)
        screen.say(f"dense checkpoint of {dense} at {made}")
        if as_json:
            screen.print_json({"checkpoint": str(made), "expert": dense})
        return
    names = None if experts is None else names_in(experts)
    with screen.byte_bar("exporting") as advance:
        done = exporting.export_plain(release, out, experts=names, progress=advance)
    _tell_export(done, as_json)


def _allowed(keys: list[Path] | None) -> set[str] | None:
    from moiety.bundle import signing

    return {signing.load_public(path) for path in keys} if keys else None


def _tell_sweep(sweep: Any) -> None:
    table = Table(
        title="Experts a token, bits per byte of held-out public text",
        caption=f"documents: {sweep.documents:,}, tokens: {sweep.tokens:,}; "
        "public text says nothing about owners' text",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("k", "bits", "minus anchor", "MFLOPs a token", "times the anchor's", ""):
        table.add_column(column, justify="right")
    alone = f"{sweep.anchor:.3f}"
    table.add_row("anchor", alone, "", f"{sweep.anchor_flops / 10**6:,.1f}", "1.00", "")
    for one in sweep.trials:
        bits = (f"{one.bits:.3f}", f"{one.bits - sweep.anchor:+.3f}")
        cost = (f"{one.flops / 10**6:,.1f}", f"{one.flops / sweep.anchor_flops:.2f}")
        table.add_row(str(one.top_k), *bits, *cost, "chosen" if one.top_k == sweep.top_k else "")
    screen.out().print(table)
    for one in sweep.owners:
        screen.say(
            f"  {one.owner} beside the anchor, on public text: {one.found:+.3f}, "
            f"published {one.published:+.3f}"
        )


def _tell(done: Mapping[str, Any], as_json: bool) -> None:
    screen.say(f"release at {done['out']}")
    seconds = f"{done['verify_seconds']:.1f} s verifying, {done['write_seconds']:.1f} s writing"
    screen.figures(
        [
            ("experts", ", ".join(done["names"])),
            ("size", f"{done['num_bytes'] / 1e6:,.1f} MB, {seconds}"),
            ("roster digest", done["digest"]),
        ]
    )
    for flag in done["flags"]:
        screen.say(f"  note: {flag}")
    screen.note(f"next: moiety eval {done['out']} --data NAME=PATH")
    if as_json:
        screen.print_json(
            {
                "release": str(done["out"]),
                "digest": done["digest"],
                "experts": done["names"],
                "bytes": done["num_bytes"],
                "verify_seconds": done["verify_seconds"],
                "write_seconds": done["write_seconds"],
                "flags": done["flags"],
                "sweep": done.get("sweep"),
            }
        )


def _tell_export(done: Any, as_json: bool) -> None:
    separator = done.separator
    screen.say(f"plain checkpoint at {done.out}")
    screen.figures(
        [
            ("experts", ", ".join(done.names)),
            ("size", f"{done.num_bytes / 1e6:,.1f} MB, {done.layers} layers of {done.width:,}"),
            ("separator", f"{separator.text} (token {separator.number})"),
        ]
    )
    if not separator.automatic:
        screen.say(
            "  warning: every text must begin with the separator, and this tokenizer does not set "
            "it; without it a text's first tokens are believed far too much"
        )
    if as_json:
        screen.print_json(
            {
                "checkpoint": str(done.out),
                "experts": done.names,
                "bytes": done.num_bytes,
                "separator": separator.number,
                "separator_automatic": separator.automatic,
            }
        )


def _tell_withdrawal(name: str, done: Any, as_json: bool) -> None:
    screen.say(f"{name} has left: {done.out}")
    screen.figures(
        [
            ("experts left", ", ".join(done.names)),
            ("roster before", done.digest_before),
            ("roster now", done.digest),
            ("tensors removed", f"{done.num_removed:,}"),
            ("receipt", str(done.receipt)),
        ]
    )
    for flag in done.flags:
        screen.say(f"  note: {flag}")
    screen.note(f"next: moiety verify {done.receipt} --release {done.out}")
    if as_json:
        screen.print_json(
            {
                "release": str(done.out),
                "receipt": str(done.receipt),
                "roster_before": done.digest_before,
                "roster_after": done.digest,
                "experts": done.names,
                "removed_tensors": done.num_removed,
                "flags": done.flags,
            }
        )

"""``moiety train``: an owner's expert, at home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli import screen

if TYPE_CHECKING:
    from moiety.bundle import papers


def train(
    anchor: Annotated[Path, typer.Argument(help="The anchor's folder.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Private text: files, folders, globs.")
    ],
    owner: Annotated[str, typer.Option(help="Your name in every roster, such as city-hospital.")],
    out: Annotated[Path, typer.Option(help="The run's folder. It stays with you.")],
    rank: Annotated[
        int | None, typer.Option(help="Train a low-rank expert: a fraction of the size.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Training tokens, public ones included; default: as many as pay."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling and start.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.field=value")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    record_key: Annotated[
        str | None,
        typer.Option(help="Field that says whose record it is (patient, account)."),
    ] = None,
    heldout: Annotated[
        list[str] | None,
        typer.Option(help="Text to judge on; default: a share of your own, chosen by hash."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count bad lines instead of stopping.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON line.")] = False,
) -> None:
    """Train your expert beside the frozen anchor, on text that never leaves the run's folder.

    Interrupt with Ctrl-C and go on with --resume. At the end you see what your text gained and
    that public text did not suffer.

    Example: moiety train anchor/ notes.jsonl --owner city-hospital --record-key patient_id --out run/
    """
    from moiety.train import ExpertPlan, Sources, TrainConfig, resolve_config, train_expert

    screen.quiet_libraries()
    named = {"pair.rank": rank, "budget.tokens": tokens, "seed": seed}
    assignments = [*(set_ or []), *(f"{k}={v}" for k, v in named.items() if v is not None)]
    settings = resolve_config(TrainConfig(), config, assignments)
    reading = {"text_field": text_field, "skip_bad": skip_bad}
    plan = ExpertPlan(
        anchor,
        Sources(data, record_key=record_key, text_field=text_field, skip_bad=skip_bad),
        owner,
        out,
        settings,
        Sources(heldout, record_key=record_key, **reading) if heldout else None,  # type: ignore[arg-type]
    )
    done = train_expert(plan, resume=resume)
    _tell(done.paper, out)
    screen.say(f"  left out: {done.skipped.summary()}")
    screen.note(f"next: moiety keys new --out {owner}.pem, then")
    screen.note(f"      moiety pack {out} --key {owner}.pem --out {owner}.expert")
    if as_json:
        screen.print_json(
            {
                "run": str(out),
                "owner": owner,
                "result": done.paper.result.model_dump(),
                "steps": done.paper.steps,
                "tokens_seen": done.paper.tokens_seen,
                "seconds": done.paper.seconds,
                "skipped": done.skipped.totals,
            }
        )


def _tell(paper: papers.RunPaper, out: Path) -> None:
    from rich.table import Table

    table = Table(title=f"Bits per byte, run {out}", title_justify="left")
    for column in ("held-out text", "anchor", "with your expert", "change", "documents"):
        table.add_column(column, justify="left" if column == "held-out text" else "right")
    for name, bits in (("yours", paper.result.heldout), ("public", paper.result.public)):
        change = bits.pair - bits.anchor
        table.add_row(
            name, f"{bits.anchor:.3f}", f"{bits.pair:.3f}", f"{change:+.3f}", f"{bits.documents:,}"
        )
    screen.out().print(table)
    kind = "full" if paper.rank is None else f"rank {paper.rank}"
    screen.say(
        f"  {kind} expert, {paper.steps:,} steps, {paper.tokens_seen:,} tokens, "
        f"{paper.seconds:,.0f} s; lower is better"
    )

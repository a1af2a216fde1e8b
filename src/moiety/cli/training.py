"""``moiety train``: an owner's expert, at home."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moiety.cli import screen
from moiety.cli.options import (
    AsJson,
    Assignments,
    ConfigFile,
    Resume,
    SkipBad,
    TextField,
    Tokens,
)

if TYPE_CHECKING:
    from moiety.bundle import papers

RecordKey = Annotated[
    str | None, typer.Option(help="Field that says whose record it is (patient, account).")
]
Heldout = Annotated[
    list[str] | None,
    typer.Option(help="Text to judge on; default: a share of your own, chosen by hash."),
]


def train(
    anchor: Annotated[Path, typer.Argument(metavar="ANCHOR", help="The anchor's folder.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Private text: files, folders, globs.")
    ],
    owner: Annotated[str, typer.Option(help="Your name in every roster, such as city-hospital.")],
    out: Annotated[Path, typer.Option(help="The run's folder. It stays with you.")],
    rank: Annotated[
        int | None, typer.Option(help="Train a low-rank expert: a fraction of the size.")
    ] = None,
    tokens: Tokens = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling and start.")] = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    resume: Resume = False,
    text_field: TextField = "text",
    record_key: RecordKey = None,
    heldout: Heldout = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Train your expert beside the frozen anchor, on text that never leaves the run's folder.

    Interrupt with Ctrl-C and go on with --resume. At the end you see what your text gained and
    that public text did not suffer.

    Example: moiety train anchor/ notes.jsonl --owner city-hospital --out run/
    """
    from moiety.data import Sources
    from moiety.train import ExpertPlan, TrainConfig, train_expert

    screen.quiet_libraries()
    named = {"pair.rank": rank, "budget.tokens": tokens, "seed": seed}
    assignments = [*(set_ or []), *(f"{k}={v}" for k, v in named.items() if v is not None)]
    settings = TrainConfig().resolve(config, assignments)
    own = Sources(data, text_field, record_key, skip_bad)
    judged = Sources(heldout, text_field, record_key, skip_bad) if heldout else None
    plan = ExpertPlan(anchor, own, owner, out, settings, judged)
    done = train_expert(plan, resume=resume)
    _tell(done.paper, out, done.skipped.summary())
    if as_json:
        screen.print_json(_facts(done.paper) | {"run": str(out), "skipped": done.skipped.totals})


def _facts(paper: papers.RunPaper) -> dict[str, Any]:
    chosen = {"owner", "result", "steps", "tokens_seen", "seconds"}
    return paper.model_dump(mode="json", include=chosen)


def _tell(paper: papers.RunPaper, out: Path, left_out: str) -> None:
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
    screen.say(f"  left out: {left_out}")
    screen.note(f"next: moiety keys new --out {paper.owner}.pem, then")
    screen.note(f"      moiety pack {out} --key {paper.owner}.pem --out {paper.owner}.expert")

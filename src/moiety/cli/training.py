"""``moiety train``: an owner's expert, at home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moiety.cli import screen
from moiety.cli.options import (
    AsJson,
    Assignments,
    ConfigFile,
    RecordKey,
    Resume,
    SkipBad,
    TextField,
    Tokens,
)

if TYPE_CHECKING:
    from moiety.bundle import papers

FEW_CANARIES = 32
"""With fewer an audit shows no epsilon above 1.7 at 95 %, though every guess of it be right."""

Epsilon = Annotated[
    float | None, typer.Option(help="Train with differential privacy: what may be spent in all.")
]
Delta = Annotated[
    float | None, typer.Option(help="Chance that it fails; default: a tenth of one record.")
]
TuningRuns = Annotated[
    int | None, typer.Option(help="Earlier runs on this text to count; default: they are not.")
]
Canaries = Annotated[
    int | None,
    typer.Option(
        help="Texts for an audit: half are trained on, as records like yours. 500 will do."
    ),
]
Heldout = Annotated[
    list[str] | None,
    typer.Option(help="Text to judge on; default: a share of your own, chosen by hash."),
]


Private = Annotated[
    list[str], typer.Argument(metavar="DATA...", help="Private text: files, folders, globs.")
]
Rank = Annotated[int | None, typer.Option(help="Train a low-rank expert: a fraction of the size.")]


def train(
    anchor: Annotated[Path, typer.Argument(metavar="ANCHOR", help="The anchor's folder.")],
    data: Private,
    owner: Annotated[str, typer.Option(help="Your name in every roster, such as city-hospital.")],
    out: Annotated[Path, typer.Option(help="The run's folder. It stays with you.")],
    rank: Rank = None,
    tokens: Tokens = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling and start.")] = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    resume: Resume = False,
    text_field: TextField = "text",
    record_key: RecordKey = None,
    heldout: Heldout = None,
    skip_bad: SkipBad = False,
    epsilon: Epsilon = None,
    delta: Delta = None,
    tuning_runs: TuningRuns = None,
    canaries: Canaries = None,
    as_json: AsJson = False,
) -> None:
    """Train your expert beside the frozen anchor, on text that never leaves the run's folder.

    Interrupt with Ctrl-C and go on with --resume. At the end you see what your text gained and
    that public text did not suffer.

    With --epsilon the expert keeps a promise for each record, also about its table of evidence.
    Name records by --record-key: without it each document is one.

    With --canaries N an audit tells knowing from guessing: a coin decides which of N texts,
    of three words over and over, are trained on beside yours, each as a record of eight documents.
    That costs training; your files stay as they are.

    Example: moiety train anchor/ notes.jsonl --owner city-hospital --out run/
    """
    from moiety.data import Sources
    from moiety.train import ExpertPlan, TrainConfig, train_expert

    screen.quiet_libraries()
    named = {
        "pair.rank": rank,
        "budget.tokens": tokens,
        "seed": seed,
        "privacy.epsilon": epsilon,
        "privacy.delta": delta,
        "privacy.tuning_runs": tuning_runs,
        "data.canaries": canaries,
    }
    assignments = [*(set_ or []), *(f"{k}={v}" for k, v in named.items() if v is not None)]
    settings = TrainConfig().resolve(config, assignments)
    if 0 < settings.data.canaries < FEW_CANARIES:
        screen.note("from so few canaries an audit learns little or nothing; 500 will do")
    own = Sources(data, text_field, record_key, skip_bad)
    judged = Sources(heldout, text_field, record_key, skip_bad) if heldout else None
    done = train_expert(ExpertPlan(anchor, own, owner, out, settings, judged), resume=resume)
    coins = done.canaries.planted if done.canaries else ()
    _tell(done.paper, coins, out, done.skipped.summary())
    if as_json:
        screen.print_json(_facts(done.paper, coins, out, done.skipped.totals))


def _facts(
    paper: papers.RunPaper, coins: Sequence[bool], out: Path, skipped: dict[str, int]
) -> dict[str, Any]:
    chosen = {"owner", "result", "steps", "tokens_seen", "seconds", "privacy"}
    canaries = {"drawn": len(coins), "planted": sum(coins)}
    more = {"run": str(out), "skipped": skipped, "canaries": canaries}
    return paper.model_dump(mode="json", include=chosen) | more


def _tell(paper: papers.RunPaper, coins: Sequence[bool], out: Path, left_out: str) -> None:
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
    if paper.privacy is None:
        screen.say(
            "  no promise of privacy: without --epsilon an expert may give back parts of its text"
        )
    else:
        _tell_privacy(paper.privacy)
    if coins:
        screen.say(f"  canaries: {sum(coins):,} of {len(coins):,} planted; {out / 'canaries.json'}")
        screen.note("before you pack: what your expert knows of them is told by")
        screen.note(f"      moiety audit {out} --anchor ANCHOR --data DATA --out report")
    screen.note(f"next: moiety keys new --out {paper.owner}.pem, then")
    screen.note(f"      moiety pack {out} --key {paper.owner}.pem --out {paper.owner}.expert")


def _tell_privacy(promise: papers.Guarantee) -> None:
    screen.figures(
        [
            ("privacy", f"epsilon {promise.epsilon:.3f} at delta {promise.delta:.2g}"),
            ("by Rényi", f"epsilon {promise.epsilon_rdp:.3f}, a looser count of the same"),
            ("record", promise.unit),
            ("noise", f"{promise.noise_multiplier:.3f} times {promise.clip_norm:g}, each step"),
        ]
    )
    if promise.bounds_little:
        screen.say("  so large an epsilon bounds practically nothing: take it for no promise")
    if promise.tuning_runs is None:
        screen.note("earlier runs on this text are not counted; --tuning-runs N counts them")
    screen.note("the numbers on your held-out text are not private: they stay in the run")

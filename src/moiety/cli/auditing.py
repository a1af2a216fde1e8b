"""``moiety audit``: what an expert gives away, before and after it leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moiety.cli import screen
from moiety.cli.options import AsJson, Device, RecordKey, SkipBad, TextField, command_line
from moiety.files import check_free
from moiety.stopping import interruptible

if TYPE_CHECKING:
    from moiety.audit import AuditPlan
    from moiety.bundle import audits

LEAKS = 1
"""Exit code of an audit that was done and whose verdict is ``fail``."""


Subject = Annotated[
    Path, typer.Argument(metavar="SUBJECT", help="A finished run, a bundle, or a release.")
]
Members = Annotated[
    list[str],
    typer.Option(metavar="PATH", help="Text the expert was trained on; repeat for several."),
]
Out = Annotated[Path, typer.Option(help="Folder for JSON, charts, HTML; it stays with you.")]
AnchorFolder = Annotated[
    Path | None, typer.Option(help="The anchor's folder; a release has its own.")
]
OfOwner = Annotated[
    str | None, typer.Option(help="Whose expert of a release; default: there is only one.")
]
Heldout = Annotated[
    list[str] | None,
    typer.Option(help="Like text never trained on; default for a run: what it kept aside."),
]
Canaries = Annotated[
    Path | None, typer.Option(help="The run's canaries.json; default for a run: its own.")
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="TOML of what you accept; default: as documented.")
]
Documents = Annotated[int, typer.Option(help="Documents to get back from the model.")]
Samples = Annotated[int, typer.Option(help="Tries for each, beside the likeliest of all.")]
Back = Annotated[int, typer.Option(help="Tokens to get back of each.")]
Passages = Annotated[int, typer.Option(help="Documents to tell from strangers, and half of these.")]
Control = Annotated[
    bool, typer.Option(help="Also overfit a model on purpose, to see the attack work.")
]
Draw = Annotated[int, typer.Option(help="Of the draw of documents, and of samples.")]


def audit(
    subject: Subject,
    data: Members,
    out: Out,
    anchor: AnchorFolder = None,
    owner: OfOwner = None,
    heldout: Heldout = None,
    canaries: Canaries = None,
    policy: PolicyFile = None,
    documents: Documents = 100,
    samples: Samples = 10,
    tokens: Back = 64,
    members: Passages = 500,
    control: Control = True,
    record_key: RecordKey = None,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    seed: Draw = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Attack an expert as somebody would who holds it, and see what comes out.

    Three attacks: getting documents back from 32 tokens of them, telling what was trained on
    from what was not, and finding canaries (moiety train --canaries), which bounds epsilon from
    below. Only what goes beyond the public model is the expert's. Exit 1: the verdict is fail.

    Example: moiety audit run/ --anchor anchor/ --data notes.jsonl --out report/
    """
    from moiety.audit import AuditPlan
    from moiety.data import Sources

    check_free(out)
    screen.quiet_libraries()
    read = partial(Sources, text_field=text_field, record_key=record_key, skip_bad=skip_bad)
    plan = AuditPlan(
        subject=subject,
        anchor=anchor,
        owner=owner,
        members=read(data),
        nonmembers=read(heldout) if heldout else None,
        canaries=canaries,
        policy=policy,
        documents=documents,
        samples=samples,
        continuation_tokens=tokens,
        num_members=members,
        control=control,
        seed=seed,
        device=device,
    )
    report = _carry_out(plan, out)
    if as_json:
        screen.print_json(report.model_dump(mode="json"))
    if report.verdict == "fail":
        raise typer.Exit(LEAKS)


def _carry_out(plan: AuditPlan, out: Path) -> audits.AuditReport:
    from moiety.audit import audit as run_audit

    # Weights lie in a temporary folder meanwhile: whoever stops us, it must go.
    with interruptible():
        with screen.cell_bar("auditing") as watch:
            report = run_audit(plan, command=command_line(), watch=watch)
        _tell(report, out)
    return report


def _tell(report: audits.AuditReport, out: Path) -> None:
    from moiety.audit import pages, tables

    for table in tables.render_tables(report):
        screen.out().print(table)
    pages.write_report(report, out)
    screen.note(f"report: {out / 'report.html'}; it stays with you")
    if report.verdict == "fail" and report.promise is None:
        screen.note("next: train with privacy (moiety train --epsilon 4), or on less of the text")
    elif report.verdict != "fail" and report.subject == "run":
        accept = "" if report.verdict == "pass" else " --accept-warnings"
        screen.note("next: read the report; then")
        screen.note(
            f"      moiety pack RUN --key KEY.pem --require-audit {out}{accept} --out NAME.expert"
        )

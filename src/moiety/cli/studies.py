"""``moiety study``: a whole comparison of ways to merge, planned in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moiety.cli import screen
from moiety.cli.options import AsJson

Watcher = Callable[[str, int, int], None]

if TYPE_CHECKING:
    from moiety.study import StudyReport


def study(
    plan: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What is compared, on what.")],
    out: Annotated[Path, typer.Option(help="The study's folder: what is done there stays done.")],
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this seed; repeat for several.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="A,B: only these ways to merge.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train, merge, score and compare, as a file says; the same command goes on after a stop.

    Owners are trained side by side, each in a process of its own. What stands in the folder is
    never done again: runs, releases, and the scores of every model on every text. At the end
    OUT/report/ holds report.json, a page and charts.

    Example: moiety study studies/flexmix-tiny.toml --out studies/out/flexmix-tiny
    """
    from moiety.study import Study, carry_out, read_plan, report_on, write_report

    screen.quiet_libraries()
    names = None if methods is None else tuple(name.strip() for name in methods.split(","))
    chosen = read_plan(plan).choose(names, tuple(seed) if seed else None)
    work = Study(chosen, out)
    with screen.cell_bar("pieces") as bar:
        carry_out(work, _watching(bar))
    report = report_on(work)
    write_report(report, work.report)
    _tell(report, work.report)
    if as_json:
        screen.print_json(_line(report))


def _watching(bar: Watcher) -> Watcher:
    """Where no bar is drawn, in a file or a pipe, lines tell how far it is."""
    told = 10**9 if screen.err().is_terminal else -1

    def watch(what: str, done: int, total: int) -> None:
        nonlocal told
        bar(what, done, total)
        if done > told:
            told = done
            screen.note(f"{done} of {total} pieces done; under way: {what or 'nothing'}")

    return watch


def _tell(report: StudyReport, folder: Path) -> None:
    from moiety.study import render_tables

    for table in render_tables(report):
        screen.out().print(table)
    screen.note(f"report: {folder / 'report.html'}")


def _line(report: StudyReport) -> dict[str, Any]:
    paper = report.model_dump(mode="json")
    rows = {row.pop("name"): row for row in paper.pop("rows")}
    return paper | {"rows": rows}

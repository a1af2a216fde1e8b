"""What privacy costs, and whether it holds: bits per byte and measured leaks against epsilon.

Every cell is a run of ``moiety train --epsilon E --canaries N`` and an audit of it, as an owner
would do them. A cell that stands is not done again, so the study goes on where it stopped.

    python tools/study_privacy.py --anchor ANCHOR --data ../shared/data/medical
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from moiety.bundle import papers
from moiety.bundle.audits import AUDIT_MAX_BYTES, AuditReport
from moiety.evaluate import figures

EPSILONS = ("1", "2", "4", "8", "16", "none")
LOW_RANK = 4
CANARIES = 256
PRIVATE = {
    "batch.windows": "292",
    "batch.micro_windows": "16",
    "data.public_share": "0.125",
    "budget.tokens": "1495040",
    "budget.judge_every": "1000",
}
ORDINARY = {"budget.tokens": "1495040", "budget.judge_every": "1000"}
OF_KIND = {
    "full": {"privacy.clip_norm": "0.1", "optim.learning_rate": "2e-3"},
    "low": {"privacy.clip_norm": "0.02", "optim.learning_rate": "3e-2"},
}


@dataclass(frozen=True)
class Cell:
    """One run: what it may spend (None: no privacy), and the rank of its expert (None: full)."""

    epsilon: str
    rank: int | None

    @property
    def name(self) -> str:
        kind = "full" if self.rank is None else f"rank{self.rank}"
        return f"{kind}-eps-{self.epsilon}"

    @property
    def private(self) -> bool:
        return self.epsilon != "none"

    def settings(self) -> dict[str, str]:
        chosen = dict(PRIVATE if self.private else ORDINARY)
        if self.private:
            chosen |= OF_KIND["full" if self.rank is None else "low"]
        return chosen | {"compute.compile": "off"}


def main() -> None:
    options = parse_options()
    cells = [Cell(e, rank) for rank in (None, LOW_RANK) for e in options.epsilons.split(",")]
    if options.only:
        cells = [cell for cell in cells if cell.name in options.only.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    do_all(cells, options)
    rows = [row for cell in cells if (row := read_row(cell, options.out)) is not None]
    for line in table(rows):
        print(line)
    (options.out / "report.json").write_text(json.dumps(rows, indent=1))
    for name, picture in draw(rows).items():
        (options.out / f"{name}.png").write_bytes(picture)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anchor", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of train, valid and test")
    parser.add_argument("--out", type=Path, default=Path("studies/out/privacy"))
    parser.add_argument("--epsilons", default=",".join(EPSILONS))
    parser.add_argument("--only", default="", help="names of cells, such as full-eps-8")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, one core each")
    return parser.parse_args()


def do_all(cells: list[Cell], options: argparse.Namespace) -> None:
    """Every cell that does not stand, so many at once as there are jobs, one core each."""
    cores: Queue[int] = Queue()
    for core in range(options.jobs):
        cores.put(core)

    def work(cell: Cell) -> None:
        core = cores.get()
        try:
            train(cell, options, core)
            audit(cell, options, core)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, cells))


def train(cell: Cell, options: argparse.Namespace, core: int) -> None:
    run = options.out / "runs" / cell.name
    if (run / "run.json").exists():
        return
    words = ["train", str(options.anchor), text(options, "train"), "--owner", "medical"]
    words += ["--heldout", text(options, "valid"), "--out", str(run), "--canaries", str(CANARIES)]
    words += ["--epsilon", cell.epsilon] if cell.private else []
    words += ["--rank", str(cell.rank)] if cell.rank else []
    words += [
        part for key, value in cell.settings().items() for part in ("--set", f"{key}={value}")
    ]
    words += ["--resume"] if run.exists() else []
    moiety(words, options.out / f"{cell.name}.log", core)


def audit(cell: Cell, options: argparse.Namespace, core: int) -> None:
    report = options.out / "audits" / cell.name
    if report.exists():
        return
    words = ["audit", str(options.out / "runs" / cell.name), "--anchor", str(options.anchor)]
    words += ["--data", text(options, "train"), "--heldout", text(options, "test")]
    words += [
        "--documents",
        "20",
        "--samples",
        "2",
        "--tokens",
        "32",
        "--no-control",
        "--out",
        str(report),
    ]
    moiety(words, options.out / f"{cell.name}.log", core, fine=(0, 1))


def text(options: argparse.Namespace, part: str) -> str:
    return str(options.data / f"{part}.jsonl.gz")


def moiety(words: list[str], log: Path, core: int, fine: tuple[int, ...] = (0,)) -> None:
    """Runs a command on one core; exits with its words where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("a") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "moiety", *words],
            env=environment, stdout=stream, stderr=stream, check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
    if done.returncode not in fine:
        raise SystemExit(f"moiety {' '.join(words)}\n{log.read_text()[-2000:]}")


def read_row(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The cell's numbers; None where it does not stand yet."""
    path = out / "audits" / cell.name / "report.json"
    if not path.exists():
        return None
    run = papers.read_paper(papers.RunPaper, out / "runs" / cell.name / "run.json")
    report = papers.read_paper(AuditReport, path, max_bytes=AUDIT_MAX_BYTES)
    strongest = max(
        (one.auc.value, one.auc.low, one.auc.high)
        for view in ("expert", "pair")
        for one in report.membership.get(view, {}).values()
    )
    found = max((report.canaries[v] for v in ("expert", "pair")), key=lambda f: f.epsilon_low)
    promise = run.privacy
    return {
        "cell": cell.name,
        "epsilon": None if promise is None else promise.epsilon,
        "rank": cell.rank,
        "anchor": run.result.heldout.anchor,
        "pair": run.result.heldout.pair,
        "public": run.result.public.pair - run.result.public.anchor,
        "epsilon_low": found.epsilon_low,
        "right": f"{found.right} of {found.guesses}",
        "exposure": found.exposure.value,
        "membership": strongest,
        "verdict": report.verdict,
        "noise": None if promise is None else promise.noise_multiplier,
        "seconds": run.seconds,
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table."""
    names = ("cell", "own text", "against the anchor", "public", "epsilon", "measured at least")
    names += ("right guesses", "exposure, bits", "membership AUC", "verdict")
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for row in rows:
        spent = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        cells = [
            row["cell"], f"{row['pair']:.3f}", f"{row['pair'] - row['anchor']:+.3f}",
            f"{row['public']:+.3f}", spent, f"{row['epsilon_low']:.2f}", row["right"],
            f"{row['exposure']:.2f}", "{:.3f} ({:.3f} to {:.3f})".format(*row["membership"]),
            row["verdict"],
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def draw(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Utility against epsilon, and what was measured against what was promised."""
    return {"utility": _utility(rows), "bounds": _bounds(rows)} if rows else {}


def _utility(rows: list[dict[str, Any]]) -> bytes:
    theme = figures.LIGHT
    figure, axes = figures.new_figure(7.2, 4.0, theme)
    handles: dict[str, Any] = {}
    kinds = ((None, "full expert", figures.BLUE), (LOW_RANK, f"rank {LOW_RANK}", figures.ORANGE))
    for rank, label, colour in kinds:
        mine = [row for row in rows if row["rank"] == rank]
        private = [row for row in mine if row["epsilon"] is not None]
        spent, bits = [row["epsilon"] for row in private], [row["pair"] for row in private]
        (handles[label],) = axes.plot(spent, bits, "o-", color=colour)
        for row in mine:
            if row["epsilon"] is None:
                axes.axhline(row["pair"], color=colour, linestyle=":", linewidth=1.4)
    if rows:
        handles["anchor alone"] = axes.axhline(rows[0]["anchor"], color=theme.ink, linewidth=1.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["epsilon"] for row in rows if row["epsilon"] is not None}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel("epsilon of a record; dotted: without privacy", color=theme.ink)
    axes.set_ylabel("bits per byte, held-out text", color=theme.ink)
    axes.grid(color=theme.faint, linewidth=0.8)
    figures.add_legend(figure, handles, theme)
    return figures.png(figure)


def _bounds(rows: list[dict[str, Any]]) -> bytes:
    theme = figures.LIGHT
    figure, axes = figures.new_figure(7.2, 1.4 + 0.36 * len(rows), theme)
    for y, row in enumerate(rows):
        axes.barh(y, row["epsilon_low"], height=0.5, color=figures.BLUE, zorder=2)
        if row["epsilon"] is not None:
            axes.plot(row["epsilon"], y, "|", color=figures.ORANGE, markersize=16, mew=2.5)
    axes.set_yticks(range(len(rows)))
    figures.name_ticks(axes.yaxis, [row["cell"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("epsilon: bar: measured at least; mark: promised at most", color=theme.ink)
    axes.grid(axis="x", color=theme.faint, linewidth=0.8)
    return figures.png(figure)


if __name__ == "__main__":
    main()

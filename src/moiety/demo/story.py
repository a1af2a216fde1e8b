"""The whole life of an expert, told and done: three owners, one model, one farewell.

Every owner works in a process and a folder of its own that holds nobody else's text. What they
hand to the coordinator is a bundle and, for the tables, a few held-out documents.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from moiety.bundle import anchors, audits, orders, pack, papers, signing
from moiety.data import Sources
from moiety.demo.owners import BY_HEART, CANARIES, IN_PRIVATE, Owner, do_all, settle, split_lines
from moiety.demo.texts import write_public, write_strangers
from moiety.errors import StateError
from moiety.evaluate import Question, evaluate, report, tables
from moiety.merge import load_release, merge, withdrawal
from moiety.train import PRESETS, new_anchor

PUBLIC_BYTES = 2_500_000
OWNER_BYTES = {"hospital": 500_000, "law-office": 190_000, "software-house": 500_000}
LEAVING = "hospital"
PRIVATE = "run-private"
PROMPT = "Discharge letter\n"
PURPOSE = "research"
ANCHOR_SETTINGS = (
    "data.window_tokens=128",
    "budget.tokens=300000",
    "budget.judge_every=1000",
    "budget.judge_tokens=4096",
    "budget.final_tokens=4096",
    "compute.compile=off",
)
EVAL_TOKENS = 3_000


class Story:
    """Tells what it does while it does it, in ``folder``, which must not exist."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StateError("exists already", where=folder, remedy="remove it, or name --out DIR")
        self.folder = folder
        self.desk = folder / "coordinator"
        self.screen = Console(highlight=False, soft_wrap=True)
        self.begun = time.monotonic()

    def tell(self) -> dict[str, Any]:
        """Runs the story; returns its numbers."""
        self._anchor()
        owners = [settle(name, self.folder, size) for name, size in OWNER_BYTES.items()]
        self._train(owners)
        audits_ = self._audit(owners)
        self._pack(owners)
        before = self._merge(owners)
        after = self._farewell(owners)
        self._voices()
        return self._ending(before, after) | {"audits": audits_}

    def _anchor(self) -> None:
        self._chapter(
            "A public model",
            "Documentation that every Python installation has becomes a small public model, the "
            "anchor. Everybody gets the same one, frozen.",
        )
        public = write_public(self.folder / "public", PUBLIC_BYTES)
        text = self.folder / "public" / "text.jsonl"
        split_lines(public, text, self.desk / "texts" / "public.jsonl")
        public.unlink()
        self._command(f"anchor new {text} --preset tiny --out {self.desk / 'anchor'}")
        settings = PRESETS["tiny"].train_config(0).resolve(None, ANCHOR_SETTINGS)
        made = new_anchor(
            Sources([str(text)]), self.desk / "anchor", preset="tiny", config=settings
        )
        self._say(
            f"{made.parameters / 1e6:.1f} million parameters; {made.bits_per_byte:.2f} bits per "
            "byte on public text it never saw."
        )

    def _train(self, owners: list[Owner]) -> None:
        self._chapter(
            "Three owners train at home",
            "A hospital (invented notes), a law office (licence texts) and a software house "
            "(Python source) train an expert each, in folders that hold nobody else's text. The "
            "hospital trains two: one as it comes, and one with a promise to each patient. It "
            "plants canaries in both, random texts that nobody could know.",
        )
        tasks = [owner.training() for owner in owners if owner.name != LEAVING]
        looks = next(owner for owner in owners if owner.name == LEAVING)
        plain = looks.training("run", *CANARIES, **BY_HEART)
        private = looks.training(PRIVATE, "--epsilon", "8", "--rank", "8", *CANARIES, **IN_PRIVATE)
        tasks = [private, plain, *tasks]  # the longest first: cores are then busy to the end
        for task in tasks:
            self._command(" ".join(task.words), task.owner.name)
        do_all(tasks, self.screen)
        for task in tasks:
            paper = papers.read_paper(papers.RunPaper, task.owner.house / task.makes / "run.json")
            own, public = paper.result.heldout, paper.result.public
            spent = "" if paper.privacy is None else f", epsilon {paper.privacy.epsilon:.1f}"
            self._say(
                f"{task.title}{spent}: own text {own.anchor:.2f} to {own.pair:.2f} bits per byte, "
                f"public text {public.anchor:.2f} to {public.pair:.2f}."
            )

    def _audit(self, owners: list[Owner]) -> dict[str, str]:
        """Both of the hospital's experts are attacked; returns their verdicts."""
        self._chapter(
            f"The {LEAVING} looks before it sends",
            "What would somebody learn about a patient who holds the expert? Documents are asked "
            "back, patients told from strangers, canaries looked for; by somebody who shares no "
            "code with the trainer.",
        )
        owner = next(owner for owner in owners if owner.name == LEAVING)
        strangers = write_strangers(owner.house, 2 * OWNER_BYTES[LEAVING])
        tasks = [owner.auditing(run, strangers) for run in ("run", PRIVATE)]
        for task in tasks:
            self._command(" ".join(task.words), LEAVING)
        do_all(tasks, self.screen)
        verdicts: dict[str, str] = {}
        for run, task in zip(("run", PRIVATE), tasks, strict=True):
            path = owner.house / task.makes / "report.json"
            found = papers.read_paper(audits.AuditReport, path, max_bytes=audits.AUDIT_MAX_BYTES)
            verdicts[run] = found.verdict
            worst = next(one for one in found.judgements if one.verdict == found.verdict)
            self._say(f"{run}: {found.verdict.upper()}. {worst.reason}")
        return verdicts

    def _pack(self, owners: list[Owner]) -> None:
        self._chapter(
            "Signed bundles",
            "Each owner signs its expert and sends the bundle. The text stays where it is. The "
            f"{LEAVING} sends the private one, and packs nothing without its audit.",
        )
        facts = anchors.open_facts(self.desk / "anchor")
        for owner in owners:
            key = owner.house / f"{owner.name}.pem"
            signing.new_key(key)
            bundle = owner.house / f"{owner.name}.expert"
            terms = papers.Terms(purposes=(PURPOSE,), contact=f"data@{owner.name}.example")
            run, demand, more = "run", None, ""
            if owner.name == LEAVING:
                run, report_ = PRIVATE, f"{PRIVATE}-audit"
                more = f"--require-audit {report_} --accept-warnings --show-audit "
                demand = audits.AuditDemand(owner.house / report_, accept_warnings=True, show=True)
            words = f"pack {run} --key {key.name} {more}--out {bundle.name}"
            self._command(words, owner.name)
            pack(owner.house / run, key, bundle, terms=terms, anchor=facts, audit=demand)

    def _merge(self, owners: list[Owner]) -> report.Evaluation:
        self._chapter(
            "One model",
            "The coordinator verifies the bundles and merges them. No text, no training: seconds.",
        )
        bundles = [owner.house / f"{owner.name}.expert" for owner in owners]
        names = " ".join(f"{owner.name}.expert" for owner in owners)
        self._command(f"merge anchor {names} --out release", "coordinator")
        allowed = {signing.load_public(o.house / f"{o.name}.pub") for o in owners}
        done = merge(self.desk / "anchor", bundles, self.desk / "release", keys=allowed)
        seconds = done.verify_seconds + done.write_seconds
        self._say(f"{done.num_bytes / 1e6:.0f} MB in {seconds:.1f} s. Who got better at what:")
        return self._judge("release", "report")

    def _farewell(self, owners: list[Owner]) -> report.Evaluation:
        self._chapter(
            f"The {LEAVING} leaves",
            "It signs an order; the coordinator obeys. What remains is byte for byte the merge "
            "that never had it, and a signed receipt says so.",
        )
        owner = next(owner for owner in owners if owner.name == LEAVING)
        order = self.desk / "order.json"
        bundle, key = owner.house / f"{LEAVING}.expert", owner.house / f"{LEAVING}.pem"
        self._command(f"order withdraw {bundle.name} --key {key.name} --out order.json", LEAVING)
        orders.write_order(bundle, key, order)
        self._command(
            f"withdraw release {LEAVING} --order order.json --out release-after", "coordinator"
        )
        secret = self.desk / "coordinator.pem"
        signing.new_key(secret)
        done = withdrawal.withdraw(
            self.desk / "release", LEAVING, order, out=self.desk / "release-after", key=secret
        )
        self._command(f"verify {done.receipt.name} --release release-after", "coordinator")
        withdrawal.verify_receipt_against(done.receipt, self.desk / "release-after")
        self._say(f"Receipt holds: none of the {done.num_removed} tensors is left. Tables again:")
        return self._judge("release-after", "report-after")

    def _voices(self) -> None:
        self._chapter("How it sounds", "The same prompt, with the hospital's expert and without.")
        mixture = load_release(self.desk / "release")
        for title, chosen in (
            ("with all experts", mixture.without()),
            (f"without the {LEAVING}", mixture.without(LEAVING)),
        ):
            with chosen:
                text = mixture.generate(PROMPT, max_new_tokens=60, temperature=0.7, seed=3)
            self.screen.print(Panel(escape(PROMPT + text), title=title, title_align="left"))

    def _judge(self, release: str, folder: str) -> report.Evaluation:
        texts = sorted((self.desk / "texts").glob("*.jsonl"))
        question = Question(
            self.desk / release,
            {path.stem: [str(path)] for path in texts},
            max_tokens=EVAL_TOKENS,
            window_tokens=128,
        )
        words = " ".join(f"{path.stem}=texts/{path.name}" for path in texts)
        command = f"eval {release} --data {words} --window-tokens 128 --max-tokens {EVAL_TOKENS}"
        self._command(command, "coordinator")
        with self.screen.status("scoring held-out text"):
            done = evaluate(question, command=f"moiety {command}")
        for table in tables.render_table(done)[:3]:
            self.screen.print(table)
        report.write_report(done, self.folder / folder)
        return done

    def _ending(self, before: report.Evaluation, after: report.Evaluation) -> dict[str, Any]:
        gains = {
            name: before.bits_per_byte["anchor"][name] - before.bits_per_byte["all"][name]
            for name in OWNER_BYTES
        }
        anchor, left = (after.bits_per_byte[model][LEAVING] for model in ("anchor", "all"))
        seconds = time.monotonic() - self.begun
        self._chapter("The end", "")
        for name, gain in gains.items():
            self._say(f"{name}: {gain:.2f} bits per byte better than the anchor, merged.")
        self._say(
            f"After the farewell the model is {100 * (left / anchor - 1):+.2f} % from the anchor "
            f"on the {LEAVING}'s text."
        )
        self._say(f"{seconds:.0f} seconds. Report: {self.folder / 'report' / 'report.html'}")
        self.screen.print("\nTry next:")
        release = self.desk / "release"
        for words in (
            f'generate {release} --prompt "def __init__(self" --experts software-house',
            f"verify {release}",
            f"export {release} --dense law-office --out {self.folder / 'law-dense'}",
            f"serve {release} --purpose {PURPOSE}",
        ):
            self.screen.print(f"  moiety {escape(words)}")
        return {
            "gain": gains,
            "after_withdrawal": {"anchor": anchor, "all": left},
            "gap_closed": before.gap_closed,
            "seconds": round(seconds, 1),
            "report": str(self.folder / "report" / "report.html"),
        }

    def _chapter(self, title: str, words: str) -> None:
        self.screen.print()
        self.screen.rule(f"[bold]{escape(title)}", align="left")
        if words:
            self.screen.print(escape(words))

    def _command(self, words: str, place: str = "") -> None:
        where = f"{place} " if place else ""
        self.screen.print(f"[dim]{escape(where)}$ moiety {escape(words)}[/dim]")

    def _say(self, words: str) -> None:
        self.screen.print(f"  {escape(words)}")


def tell(folder: Path) -> dict[str, Any]:
    """Runs the story in a new folder; returns its numbers.

    Raises:
        StateError: the folder exists already, or an owner could not train.
        KeyboardInterrupt: asked to stop; what was made is left behind.
    """
    story = Story(folder)
    try:
        return story.tell()
    except KeyboardInterrupt as stop:
        # Not the training's own words: a run can be resumed, the story cannot.
        raise KeyboardInterrupt(f"remove {folder} to begin again") from stop

"""``moiety proxies``, ``tune-router``, ``untune``: routing tuned together, for who wants that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moiety.cli import screen
from moiety.cli.options import (
    AsJson,
    Assignments,
    NewFolder,
    RecordKey,
    ReleaseFolder,
    Resume,
    SkipBad,
    TextField,
)

AnchorFolder = Annotated[Path, typer.Option(help="The release's anchor, with its public sample.")]


def proxies(
    anchor: Annotated[Path, typer.Argument(metavar="ANCHOR", help="The anchor's folder.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Private text: files, folders, globs.")
    ],
    owner: Annotated[str, typer.Option(help="Your name in the release.")],
    out: Annotated[Path, typer.Option(help="PROXIES.json to write.")],
    key: Annotated[
        Path | None, typer.Option(help="Sign it with the key that signed your bundle.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(help="How many to name; default 256, at most half of the sample.")
    ] = None,
    text_field: TextField = "text",
    record_key: RecordKey = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Name the public documents that look most like your text, for a coordinator's tune-router.

    Whoever gets the paper learns which public documents resemble your private text. No release
    needs it: only router tuning does, which you may decline.

    Example: moiety proxies anchor/ notes.jsonl --owner hospital --out proxies.json
    """
    from moiety.data import Sources
    from moiety.tune import ProxiesPlan, choose_proxies

    sources = Sources(data, text_field, record_key, skip_bad)
    done = choose_proxies(ProxiesPlan(anchor, sources, owner, out, documents, key))
    paper, count = done.paper, len(done.paper.documents)
    screen.say(f"proxies {out}: {count:,} of {paper.sample_documents:,} public documents")
    screen.figures(
        [
            ("digest", done.digest),
            ("taken for yours", f"{done.taken_for_own:,} of {count:,}"),
            ("accuracy", f"{done.accuracy:.1%}; the paper says {paper.accuracy}"),
            ("left out", done.skipped.summary()),
        ]
    )
    screen.say("most alike:", *(f"  {words}" for words in done.most_alike))
    if done.taken_for_own < count / 10:
        screen.note("hardly any looks like yours: a router tuned on them may leave your text alone")
    if key is None:
        screen.note("not signed: with --key a coordinator can tell that it is yours")
    screen.note("it tells which public documents resemble your text: look before you send it")
    if as_json:
        facts = paper.model_dump(mode="json", exclude={"documents"})
        more = {"documents": count, "taken_for_own": done.taken_for_own, "digest": done.digest}
        screen.print_json({"proxies": str(out), **facts, **more})


def tune_router(
    release: ReleaseFolder,
    anchor: AnchorFolder,
    proxies: Annotated[
        list[Path], typer.Option(help="PROXIES.json of an owner in the release; repeatable.")
    ],
    out: NewFolder,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 200,
    set_: Assignments = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train how a release routes, everybody together, on public text that its owners chose.

    Tables of evidence change, experts do not. The new release is no longer strict, says so, and
    keeps the owners' own; untune, withdraw and admit go back to them.

    Example: moiety tune-router release/ --anchor anchor/ --proxies proxies.json --out tuned/
    """
    from moiety.tune import RouterPlan, tuning_config
    from moiety.tune import tune_router as tune

    screen.quiet_libraries()
    plan = RouterPlan(release, anchor, proxies, out, tuning_config(set_ or []), steps)
    done = tune(plan, resume=resume)
    screen.say(f"release at {out}: not strict, its tables were tuned")
    before, after = done.heldout
    screen.figures(
        [
            ("held out", f"{before:.4f} to {after:.4f} bits per byte"),
            ("roster digest", done.digest),
        ]
    )
    for flag in done.flags:
        screen.say(f"  note: {flag}")
    screen.note(f"next: moiety eval {out} --data NAME=PATH, and the same for {release}")
    if as_json:
        facts = {"release": str(out), "roster_before": done.digest_before, "digest": done.digest}
        more = {"experts": done.names, "steps": done.steps, "heldout": done.heldout}
        screen.print_json({**facts, **more, "strict": False, "flags": done.flags})


def untune(release: ReleaseFolder, out: NewFolder, as_json: AsJson = False) -> None:
    """Go back to the owners' own tables: byte for byte the release before it was tuned.

    Example: moiety untune tuned/ --out release/
    """
    from moiety.merge import tuned

    with screen.byte_bar("untuning") as advance:
        done = tuned.untune(release, out, progress=advance)
    screen.say(f"release at {out}: strict")
    screen.figures([("roster before", done.digest_before), ("roster now", done.digest)])
    if as_json:
        facts = {"release": str(out), "roster_before": done.digest_before, "digest": done.digest}
        screen.print_json({**facts, "experts": done.names, "strict": True})

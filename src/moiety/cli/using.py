"""``moiety generate``, ``eval`` and ``attribute``: a release at work, how good, and by whom."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moiety.cli import screen
from moiety.cli.options import (
    AsJson,
    Device,
    More,
    ReleaseFolder,
    SkipBad,
    TextField,
    WindowTokens,
    command_line,
    names_in,
)
from moiety.errors import ConfigError
from moiety.files import check_free


def generate(
    release: ReleaseFolder,
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the mass.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    experts: Annotated[
        str | None, typer.Option(help="A,B: use only these owners' experts (and the anchor).")
    ] = None,
    without: Annotated[
        str | None, typer.Option(help="A,B: use everybody but these owners.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print as the text comes.")] = False,
    device: Device = "cpu",
) -> None:
    """Continue a prompt; stdout holds the continuation alone.

    Example: moiety generate release/ --prompt "The patient" --without court
    """
    from moiety.merge import load_release

    if experts is not None and without is not None:
        raise ConfigError("--experts and --without exclude each other", remedy="give one of them")
    screen.quiet_libraries()
    mixture = load_release(release, device=device)
    chosen = (
        mixture.without(*names_in(without)) if experts is None else mixture.only(*names_in(experts))
    )
    with chosen:
        text = mixture.generate(
            prompt,
            max_new_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stream=stream,
        )
    if not stream:
        sys.stdout.write(text + "\n")


def eval_(
    release: ReleaseFolder,
    data: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="Text to judge on; repeat for several.")
    ],
    more: More = None,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, charts, HTML.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each text, a fair sample.")] = 32_768,
    window_tokens: WindowTokens = 256,
    top_k: Annotated[
        int | None, typer.Option(help="Experts a token uses; default: as merged.")
    ] = None,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Bits per byte of every text under every set of experts, and what each removal costs.

    A text belongs to the owner of the same name; other names are nobody's. Lower is better.

    Example: moiety eval release/ --data public=pub.jsonl --data hospital=test.jsonl --out report/
    """
    from moiety.evaluate import Question, evaluate, report, tables

    if out is not None:
        check_free(out)
    screen.quiet_libraries()
    question = Question(
        release=release,
        texts=_texts([*data, *(more or [])]),
        max_tokens=max_tokens,
        window_tokens=window_tokens,
        top_k=top_k,
        text_field=text_field,
        skip_bad=skip_bad,
        device=device,
    )
    with screen.cell_bar("scoring") as watch:
        done = evaluate(question, command=command_line(), watch=watch)
    for table in tables.render_table(done):
        screen.out().print(table)
    for text in done.texts:
        screen.say(f"  {text.name}: {text.documents:,} documents, {text.tokens:,} tokens scored")
    if out is not None:
        report.write_report(done, out)
        screen.note(f"report: {out / 'report.html'}")
    if as_json:
        screen.print_json(report.to_json_line(done))


def attribute(
    release: ReleaseFolder,
    text: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Files of text.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens of the text, a fair sample.")] = 4096,
    window_tokens: WindowTokens = 256,
    orders: Annotated[
        int, typer.Option(help="Orders of joining to draw where owners are more than ten.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of the sample and the orders.")] = 0,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """What a text owes to whom: each owner's Shapley value, beside the routing share.

    The values divide what the release gains over the anchor on this text. Up to ten owners every
    set of them is scored, so they are exact; the routing share is free, but only a hint.

    Example: moiety attribute release/ letter.txt
    """
    from moiety.data import Sources
    from moiety.evaluate import attribute as divide

    screen.quiet_libraries()
    with screen.cell_bar("scoring") as watch:
        done = divide(
            release,
            Sources(text, text_field=text_field, skip_bad=skip_bad),
            max_tokens=max_tokens,
            window_tokens=window_tokens,
            orders=orders,
            device=device,
            seed=seed,
            watch=watch,
        )
    screen.out().print(done.table())
    screen.say(*(f"  {line}" for line in done.lines()))
    if as_json:
        screen.print_json(done.to_json())


def _texts(pairs: list[str]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        name, found, path = pair.partition("=")
        if not found or not name or not path:
            raise ConfigError(f"not NAME=PATH: {pair!r}", where="--data")
        texts.setdefault(name, []).append(path)
    return texts

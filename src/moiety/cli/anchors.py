"""``moiety anchor``: make or take the public model everybody builds on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moiety.cli import screen

app = typer.Typer(
    no_args_is_help=True,
    help="Make the frozen public model that owners train against, or take an existing one.",
)

Preset = Literal["tiny", "small", "base"]
Text = Annotated[
    list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs, hub id.")
]
Out = Annotated[Path, typer.Option(help="Folder to write; must not exist.")]
TextField = Annotated[str, typer.Option(help="Field that holds the text (JSONL, Parquet).")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad lines instead of stopping.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON line.")]


@app.command()
def new(
    data: Text,
    out: Out,
    preset: Annotated[
        Preset, typer.Option(help="tiny ~2.5 M parameters, small ~7 M, base ~110 M.")
    ] = "tiny",
    tokens: Annotated[int | None, typer.Option(help="Training tokens; default: 3 passes.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text: same anchor.")] = 0,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.field=value")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with unfinished work.")] = False,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer and an OLMo 2 decoder from scratch on public text.

    Example: moiety anchor new public/ --out anchor/ --preset small
    """
    from moiety.train import PRESETS, Sources, new_anchor, resolve_config

    screen.quiet_libraries()
    assignments = list(set_ or [])
    if tokens is not None:
        assignments.append(f"budget.tokens={tokens}")
    settings = resolve_config(PRESETS[preset].train_config(seed), config, assignments)
    sources = Sources(data, text_field=text_field, skip_bad=skip_bad)
    made = new_anchor(sources, out, preset=preset, config=settings, resume=resume)
    _tell(made, as_json)


@app.command("import")
def import_(
    checkpoint: Annotated[str, typer.Argument(help="Folder, or a hub model such as owner/name.")],
    out: Out,
    public: Annotated[list[str], typer.Option(help="Public text; repeat for several.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Take an OLMo 2 checkpoint as it is; add a public sample and the digests.

    Files are linked, not copied, where the file system allows.

    Example: moiety anchor import allenai/OLMo-2-0425-1B --public public/ --out anchor/
    """
    from moiety.train import Sources, import_anchor

    screen.quiet_libraries()
    sources = Sources([*public, *(more or [])], text_field=text_field, skip_bad=skip_bad)
    _tell(import_anchor(checkpoint, sources, out), as_json)


def _tell(made: object, as_json: bool) -> None:
    from moiety.train.anchor import MadeAnchor

    assert isinstance(made, MadeAnchor)
    screen.say(f"anchor at {made.folder}")
    screen.figures(
        [
            ("parameters", f"{made.parameters:,}"),
            ("public bits per byte", f"{made.bits_per_byte:.3f} (held out)"),
            ("digest", made.digest),
            ("left out", made.skipped.summary()),
        ]
    )
    screen.note(f"next: moiety train {made.folder} DATA... --owner NAME --out run/")
    if as_json:
        screen.print_json(
            {
                "anchor": str(made.folder),
                "digest": made.digest,
                "parameters": made.parameters,
                "public_bits_per_byte": made.bits_per_byte,
                "skipped": made.skipped.totals,
            }
        )

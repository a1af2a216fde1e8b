"""``moiety anchor``: make or take the public model everybody builds on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from moiety.cli import screen
from moiety.cli.options import (
    AsJson,
    Assignments,
    ConfigFile,
    More,
    NewFolder,
    Resume,
    SkipBad,
    TextField,
    Tokens,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Make the frozen public model that owners train against, or take an existing one.",
)

Preset = Literal["tiny", "small", "base"]
Text = Annotated[
    list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs, hub id.")
]


@app.command()
def new(
    data: Text,
    out: NewFolder,
    preset: Annotated[
        Preset, typer.Option(help="tiny ~2.5 M parameters, small ~7 M, base ~110 M.")
    ] = "tiny",
    tokens: Tokens = None,
    seed: Annotated[int, typer.Option(help="Same seed, same text: same anchor.")] = 0,
    config: ConfigFile = None,
    set_: Assignments = None,
    resume: Resume = False,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer and an OLMo 2 decoder from scratch on public text.

    Example: moiety anchor new public/ --out anchor/ --preset small
    """
    from moiety.data import Sources
    from moiety.train import PRESETS, new_anchor

    screen.quiet_libraries()
    assignments = list(set_ or [])
    if tokens is not None:
        assignments.append(f"budget.tokens={tokens}")
    settings = PRESETS[preset].train_config(seed).resolve(config, assignments)
    sources = Sources(data, text_field=text_field, skip_bad=skip_bad)
    made = new_anchor(sources, out, preset=preset, config=settings, resume=resume)
    _tell(made, as_json)


@app.command("import")
def import_(
    checkpoint: Annotated[str, typer.Argument(help="Folder, or a hub model such as owner/name.")],
    out: NewFolder,
    public: Annotated[list[str], typer.Option(help="Public text; repeat for several.")],
    more: More = None,
    text_field: TextField = "text",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Take an OLMo 2 checkpoint as it is; add a public sample and the digests.

    Files are linked, not copied, where the file system allows.

    Example: moiety anchor import allenai/OLMo-2-0425-1B --public public/ --out anchor/
    """
    from moiety.data import Sources
    from moiety.train import import_anchor

    screen.quiet_libraries()
    sources = Sources([*public, *(more or [])], text_field=text_field, skip_bad=skip_bad)
    _tell(import_anchor(checkpoint, sources, out), as_json)


def _tell(made: Any, as_json: bool) -> None:
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

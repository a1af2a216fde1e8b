"""``moiety demo``: the whole story on one laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moiety.cli import screen
from moiety.cli.options import AsJson


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Three owners, one model, one farewell: the whole life of an expert in a few minutes.

    Nothing is downloaded: the text is what every Python installation has, and invented notes.
    """
    from moiety.demo import tell

    screen.quiet_libraries()
    ending = tell(out)
    if as_json:
        screen.print_json(ending)

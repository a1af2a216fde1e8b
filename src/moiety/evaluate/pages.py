"""One HTML page with everything in it, and how numbers are written on pages and terminals."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from moiety.files import canonical_json, new_folder

Interval = tuple[float, float]
Pictures = dict[str, bytes]
"""PNG by name."""


def show(value: float) -> str:
    """Bits per byte to three digits."""
    return f"{value:.3f}"


def show_signed(value: float) -> str:
    """A difference in bits per byte, its sign always shown, never "-0.000"."""
    return f"{round(value, 3) + 0.0:+.3f}"


def show_share(value: float) -> str:
    """A share as per cent with one digit."""
    return f"{round(100 * value, 1) + 0.0:.1f} %"


def show_interval(ends: Interval, *, signed: bool = False) -> str:
    """Both ends of an interval in bits per byte."""
    form = show_signed if signed else show
    return f"{form(ends[0])} to {form(ends[1])}"


def render(
    template: str,
    light: Pictures,
    dark: Pictures,
    *,
    room: str = "moiety.evaluate",
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """A template of a room, on the layout that all our pages share: no script, nothing to fetch."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(room), PackageLoader("moiety.evaluate")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bits=show, signed=show_signed, share=show_share, ends=show_interval, **(filters or {})
    )
    return environment.get_template(template).render(
        light=_embedded(light), dark=_embedded(dark), **values
    )


def write_folder(
    folder: Path, paper: Any, page: str, pictures: Pictures, *, replace: bool = False
) -> None:
    """Writes ``report.json``, ``report.html`` and the pictures, all or nothing.

    Raises:
        StateError: ``folder`` exists already, is not empty, and is not to be replaced.
    """
    with new_folder(folder, replace=replace) as new:
        (new / "report.json").write_bytes(canonical_json(paper))
        (new / "report.html").write_text(page, encoding="utf-8")
        for name, picture in pictures.items():
            (new / f"{name}.png").write_bytes(picture)


class _Picture(NamedTuple):
    source: str
    least_width: int


def _embedded(pictures: dict[str, bytes]) -> dict[str, _Picture]:
    """Pictures as data URLs, with the width in CSS pixels below which they cannot be read."""
    return {
        name: _Picture(
            "data:image/png;base64," + base64.b64encode(picture).decode(),
            # a PNG's width stands at byte 16; charts have 150 dots an inch
            int.from_bytes(picture[16:20], "big") // 2,
        )
        for name, picture in pictures.items()
    }

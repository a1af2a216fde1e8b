"""The page at ``/``: files that hold nothing of anybody, so no key is asked for.

What the page shows it asks the public API for, with the key that a person types in.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).with_name("page")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {"/": "index.html"} | {
    f"/{name}": name for name in ("page.css", "ask.js", "pane.js", "usage.js", "page.js")
}
PATHS = frozenset(_FILES)

# The page brings all it needs, talks to this server alone, and is never shown inside another.
_POLICY = (
    ("default-src", "'none'"),
    ("script-src", "'self'"),
    ("style-src", "'self'"),
    ("connect-src", "'self'"),
    ("img-src", "'self' data:"),
    ("base-uri", "'none'"),
    ("form-action", "'none'"),
    ("frame-ancestors", "'none'"),
)
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, *, keys: bool) -> None:
    """Adds the page's routes, which are no part of the API's description.

    With ``keys`` the page asks for one first: to find out by a refusal would look like an error.
    """
    for path, name in _FILES.items():
        file = _FOLDER / name
        content = file.read_bytes()
        if keys and path == "/":
            content = content.replace(b"<body>", b"<body data-keys>")
        answer = partial(_answer, content, _KINDS[file.suffix])
        app.add_route(path, answer, methods=["GET"], include_in_schema=False)


async def _answer(content: bytes, kind: str, _request: Request) -> Response:
    return Response(content, headers=HEADERS, media_type=kind)

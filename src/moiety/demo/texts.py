"""The demo's texts, made from what every installation has: no download, nothing private.

Public text is documentation: docstrings of the standard library and of the packages we depend on.
The three owners are a software house (Python source without its documentation), a law office
(licence texts) and a hospital (invented notes). No owner's text is also in the public text.

Texts come in the order of their digests, so any prefix of a file is a fair sample of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moiety.demo.notes import patient_notes
from moiety.errors import ConfigError, DataError
from moiety.files import write_atomic

OWNERS = ("hospital", "law-office", "software-house")

_PACKAGES = (
    "datasets",
    "fsspec",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "mpmath",
    "networkx",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "rich",
    "sympy",
    "tokenizers",
    "torch",
    "transformers",
)
"""Dependencies of ours with much prose; other packages could be somebody's private work."""

_SMALLEST_BYTES = 20_000
_DOCUMENT_CHARS = (2000, 4000)
_NOTES_SEED = 20_250_712
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|third|copyright)", re.IGNORECASE)
_LEGAL = re.compile(r"licen[cs]e|copyright|warrant|liabilit", re.IGNORECASE)
_QUOTED = re.compile(r'"""(.*?)"""', re.DOTALL)
_TABLE = re.compile(
    r"^\s*([-=~]{3,}\s*$|#|(Args|Arguments|Parameters|Returns?|Raises|Yields|Attributes|Inputs?|Examples?)"
    r"\s*:|\*{0,2}[`\w.]+\s*(\([^)]*\))?\s*:\s)",
    re.MULTILINE,
)
"""Rules under headings, comments, and lines such as ``name (type): meaning``."""
_PLACE = re.compile(r"(^|[\s\"'(=])(/(home|Users|root|tmp|private|var/folders|opt)/|[A-Z]:\\)")
_ADDRESS = re.compile(r"\s*[<(]?\b[\w.+-]+(@| at )[\w-]+(\.[\w-]+)+[>)]?")


@dataclass(frozen=True)
class DemoText:
    """One document; ``patient_id`` only where a record is more than one document."""

    text: str
    patient_id: str | None = None


def write_public(folder: Path, max_bytes: int) -> Path:
    """Writes ``public.jsonl``: documentation prose, at most ``max_bytes`` of text. Its path."""
    return _write(folder / "public.jsonl", _by_digest(_documentation(), max_bytes), max_bytes)


def write_owner(name: str, folder: Path, max_bytes: int) -> Path:
    """Writes ``NAME.jsonl``, one {"id", "text"[, "patient_id"]} a line. Returns its path.

    Raises:
        ConfigError: no owner of the demo has that name.
        DataError: this installation has too little of the text (licences may be stripped).
    """
    path = folder / f"{name}.jsonl"
    if name == "hospital":
        notes = patient_notes(_NOTES_SEED)
        return _write(path, (DemoText(note.text, note.patient_id) for note in notes), max_bytes)
    if name == "law-office":
        return _write(path, _by_digest(_licences(), max_bytes), max_bytes)
    if name == "software-house":
        return _write(path, _by_digest(_source(), max_bytes), max_bytes)
    raise ConfigError(f"no owner {name!r} in the demo", remedy=f"one of {', '.join(OWNERS)}")


def write_strangers(folder: Path, max_bytes: int) -> Path:
    """Writes ``strangers.jsonl``: notes of patients that the hospital's text does not have."""
    notes = patient_notes(_NOTES_SEED + 1)
    texts = (DemoText(note.text, note.patient_id) for note in notes)
    return _write(folder / "strangers.jsonl", texts, max_bytes)


def _write(path: Path, texts: Iterable[DemoText], max_bytes: int) -> Path:
    lines, total = [], 0
    for number, text in enumerate(texts):
        total += len(text.text.encode())
        if total > max_bytes:
            break
        line = {"id": f"{path.stem}-{number:06d}", "text": text.text}
        if text.patient_id is not None:
            line["patient_id"] = text.patient_id
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    if total < min(max_bytes, _SMALLEST_BYTES):
        raise DataError(f"only {total:,} bytes of text for the demo here", where=path)
    write_atomic(path, "".join(lines).encode())
    return path


def _by_digest(texts: Iterator[str], max_bytes: int) -> list[DemoText]:
    """Takes just over ``max_bytes`` of distinct texts that name no place on this machine."""
    chosen: dict[str, str] = {}
    total = 0
    for text in texts:
        digest = _digest(_normal(text))
        if digest in chosen or _PLACE.search(text) or sys.base_prefix in text:
            continue
        chosen[digest] = text
        total += len(text.encode())
        if total > max_bytes:
            break
    return [DemoText(chosen[digest]) for digest in sorted(chosen)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _normal(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


# Python files: one source for the public text and for the software house.


def _standard_library() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings"}
    skipped |= {"__pycache__", "pydoc_data", "turtledemo"}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        # _sysconfigdata and config-* hold the paths of the machine that built Python.
        if not skipped & set(name.parts) and not name.as_posix().startswith(("_sysconfig", "conf")):
            yield name.as_posix(), path


def _packages() -> Iterator[tuple[str, Path]]:
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in Path(folder).rglob("*.py"):
                name = path.relative_to(folder)
                if not {"tests", "testing", "_vendor", "auto_docstring"} & set(name.parts):
                    yield f"{package}/{name.as_posix()}", path


def _in_fair_order(files: Iterable[tuple[str, Path]]) -> list[Path]:
    """By digest of the name: the same everywhere, and any prefix mixes all packages."""
    return [path for _, path in sorted(files, key=lambda item: _digest(item[0]))]


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documentation() -> Iterator[str]:
    """Reference pages of the language (they are few), then docstrings of all files."""
    yield from _reference_pages()
    # every other file from the standard library, whose prose is the more varied
    standard = _in_fair_order(_standard_library())
    packages = _in_fair_order(_packages())
    for number, path in enumerate(packages):
        for chosen in (*standard[number : number + 1], path):
            yield from filter(None, map(_prose, _docstrings(chosen)))


def _docstrings(path: Path) -> Iterator[str]:
    """Triple-quoted strings that stand alone on their line.

    Not by ``ast``: these are 200 MB of files, which take it two minutes and this two seconds.
    """
    source = path.read_text("utf-8", errors="ignore")
    # Every pair of quotes is matched, also of other strings, so that none is entered at its end.
    for match in _QUOTED.finditer(source):
        line = source.rfind("\n", 0, match.start()) + 1
        if source[line : match.start()].strip() in ("", "r", "R"):
            yield match[1]


def _reference_pages() -> Iterator[str]:
    spec = importlib.util.find_spec("pydoc_data.topics")
    tree = _parse(Path(spec.origin)) if spec and spec.origin else None
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _gather(_prose(node.value).split("\n\n"))


def _prose(docstring: str) -> str:
    """The sentences of a docstring: no examples, no tables, no legal text; "" if little is left."""
    kept = [
        paragraph
        for paragraph in re.split(r"\n\s*\n", docstring)
        if _is_prose(paragraph) and not _LEGAL.search(paragraph)
    ]
    text = "\n\n".join(_unwrap(paragraph) for paragraph in kept)
    return text if len(text) >= 200 else ""


def _is_prose(paragraph: str) -> bool:
    lines = paragraph.splitlines()
    if any(line.lstrip().startswith((">>>", "...", "```", "|", "+-", "..")) for line in lines):
        return False
    text = _unwrap(paragraph)
    letters = len(re.sub(r"[^A-Za-z ]+", "", text))
    words = text.split()
    # A sentence has many small words and ends; tables, signatures and code do not.
    return (
        len(words) >= 8
        and letters > 0.85 * len(text)
        and not _TABLE.search(paragraph)
        and not re.search(r"[{};\\]|\w=\w|==", paragraph)
        and bool(re.search(r"[.:!?]\W*$", paragraph))
    )


def _unwrap(paragraph: str) -> str:
    """One line, or one a list item: where the author's editor broke lines says nothing."""
    lines = (" ".join(line.split()) for line in paragraph.splitlines())
    return "".join(("\n" if line[:2] in ("- ", "* ") else " ") + line for line in lines).strip()


def _source() -> Iterator[str]:
    """The standard library's code without docstrings, comments and very long lines."""
    for path in _in_fair_order(_standard_library()):
        tree = _parse(path)
        if tree is None:
            continue
        for node in ast.walk(tree):
            if isinstance(node, _Documented):
                node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
        blocks = ast.unparse(tree).split("\n\n")
        readable = [block for block in blocks if max(map(len, block.split("\n"))) <= 200]
        yield from _gather(readable)


def _is_text(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _gather(blocks: Iterable[str]) -> Iterator[str]:
    """Joins blocks to documents of 2,000 to 4,000 characters, as far as block borders allow."""
    smallest, largest = _DOCUMENT_CHARS
    document: list[str] = []
    for block in blocks:
        size = sum(map(len, document))
        if document and (size >= smallest or size + len(block) > largest):
            yield "\n\n".join(document)
            document = []
        document.append(block)
    if sum(map(len, document)) >= smallest // 8:
        yield "\n\n".join(document)


# Licences


def _licences() -> Iterator[str]:
    """Licence texts of Python, of installed packages and of the system, every paragraph once."""
    texts = sorted(_licence_texts(), key=lambda text: (-len(text), text))
    seen: set[str] = set()
    for text in texts:
        yield from _gather(_unseen(text, seen))


def _licence_texts() -> set[str]:
    found = {
        Path(str(file.locate()))
        for package in importlib.metadata.distributions()
        for file in package.files or ()
        if _LICENCE_FILE.match(file.name)
    }
    found |= set(Path(sysconfig.get_path("stdlib")).glob("LICENSE*"))
    for folder in ("/usr/share/common-licenses", "/usr/share/licenses"):
        found |= set(Path(folder).rglob("*"))
    plain = ("", ".txt", ".md", ".rst", ".apache", ".bsd", ".mit", ".external")
    texts = set()
    for path in found:
        if path.is_file() and (path.suffix.lower() in plain or path.suffix[1:2].isdigit()):
            texts.add(path.read_text("utf-8", errors="replace"))
    return texts


def _unseen(text: str, seen: set[str]) -> Iterator[str]:
    """The paragraphs most of whose five-word runs no earlier text had.

    Packages ship the same few licences with small changes; a language model must not meet in its
    held-out documents what it was trained on.
    """
    for paragraph in re.split(r"\n\s*\n", text):
        words = _normal(paragraph).split()
        runs = {" ".join(words[start : start + 5]) for start in range(max(1, len(words) - 4))}
        new = runs - seen
        seen |= runs
        if len(words) >= 6 and len(new) > 0.25 * len(runs):
            yield _ADDRESS.sub("", _unwrap(paragraph))

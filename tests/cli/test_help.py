"""Help is quick: whatever is asked for, nothing heavy is loaded to answer."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "tokenizers", "matplotlib", "pyarrow")

SCRIPT = f"""
import contextlib, io, sys
import typer
from moiety.cli import app, run

def every(command, words):
    yield words
    for name, inner in getattr(command, "commands", {{}}).items():
        yield from every(inner, [*words, name])

asked = list(every(typer.main.get_command(app), []))
for words in asked:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert run([*words, "--help"]) == 0, words
    assert "Usage:" in text.getvalue(), words
assert run(["--version"]) == 0
assert run(["train"]) == 2
loaded = sorted(name for name in {HEAVY!r} if name in sys.modules)
print(len(asked), *loaded)
"""


def test_no_help_loads_a_heavy_library():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    count, *loaded = done.stdout.splitlines()[-1].split()
    assert loaded == []
    assert int(count) >= 17


def test_python_m_moiety_is_moiety():
    done = subprocess.run(
        [sys.executable, "-m", "moiety", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("moiety ")


def test_a_reader_who_leaves_early_is_not_a_crash():
    """As in ``moiety doctor | head -1``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moiety", "--help"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()  # long before anything can be written
    assert b"Traceback" not in process.communicate()[1]
    assert process.returncode != 0

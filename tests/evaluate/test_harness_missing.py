"""Without the extra, importing the harness says what to install."""

from __future__ import annotations

import subprocess
import sys

from tests.house.source import ROOT

CODE = """
import sys
sys.modules["lm_eval"] = sys.modules["lm_eval.api.model"] = None  # as if it were not installed
from moiety.errors import ConfigError
try:
    import moiety.evaluate.harness
except ConfigError as error:
    print(error.message, "|", error.remedy)
"""


def test_without_the_extra_the_remedy_names_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    said = done.stdout.strip()
    assert said == "lm-evaluation-harness is not installed | pip install 'moiety[eval]'"
    assert "eval = " in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_room_itself_needs_no_harness() -> None:
    code = "import sys, moiety.evaluate; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

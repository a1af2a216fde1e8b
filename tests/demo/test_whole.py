"""The whole story on this machine, and the server that its last line starts."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI


@pytest.mark.slow
def test_the_last_line_starts_a_server_of_the_demos_release(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "moiety", "demo", "--out", str(tmp_path / "demo")]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    program, *last = shlex.split(told.strip().splitlines()[-1])
    assert (program, last[0]) == ("moiety", "serve")
    words = [sys.executable, "-m", "moiety", *last, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            ready = next(line for line in server.stderr if line.startswith("ready: "))
            with OpenAI(base_url=ready.split()[-1], api_key="none", timeout=60) as client:
                answer = client.completions.create(model="release+software-house", prompt="def ")
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)
    assert server.returncode == 0
    assert answer.choices[0].text
    assert answer.moiety["experts"] == ["anchor", "software-house"]

"""The story stops when it is asked to, and says how to begin again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time


def test_an_interrupted_story_says_how_to_begin_again(tmp_path):
    out = tmp_path / "demo"
    words = [sys.executable, "-m", "moiety", "demo", "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        # A shell may have told us, and so the story, to ignore Ctrl-C; a training listens again.
        log = out / "coordinator/anchor.training/logs/train.jsonl"
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            said = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 130, said
    assert f"remove {out} to begin again" in " ".join(said.split())

"""Speaks the worker's lines without vLLM: for what a working worker never does.

``FAKE`` says how: ``good``, ``old`` (another version), ``slow`` (never ready), ``dies`` (at a
prompt that holds token 7), ``garbage`` (at the same), ``deaf`` (confirms no withdrawal), ``weak``
(good once, and never ready again).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

MODE = os.environ["FAKE"]
WAIT = 0.01
stopped: set[int] = set()
lock = threading.Lock()


def say(message) -> None:
    with lock:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def run(job) -> None:
    """Counts up from the last token of the prompt."""
    if 7 in job["prompt"] and MODE in ("dies", "weak"):
        os._exit(3)
    if 7 in job["prompt"] and MODE == "garbage":
        sys.stdout.write("Loading weights: 100%\n")
        sys.stdout.flush()
        return
    for number in range(job["max_tokens"]):
        time.sleep(WAIT)
        if job["id"] in stopped:
            say({"is": "steps", "rows": [[job["id"], [], "cancelled"]]})
            return
        step = [(job["prompt"][-1] + number + 1) % 300, -0.5, [], False]
        say({"is": "steps", "rows": [[job["id"], [step], None]]})
    say({"is": "steps", "rows": [[job["id"], [], "length"]]})


def main() -> None:
    say({"is": "hello", "protocol": 1, "vllm": "0.31.0" if MODE == "old" else "0.32.0"})
    start = json.loads(sys.stdin.readline())
    assert Path(start["model"], "config.json").exists()
    seen = Path(os.environ["FAKE_SEEN"])
    with seen.open("a") as file:
        file.write(f"{os.getpid()} {start['experts']} {start['model']}\n")
    if MODE == "slow" or (MODE == "weak" and len(seen.read_text().splitlines()) > 1):
        time.sleep(1000 if MODE == "slow" else 0)
        sys.exit("no memory left")
    say({"is": "ready"})
    jobs = {}
    for line in sys.stdin:
        message = json.loads(line)
        if message["do"] == "run":
            jobs[message["id"]] = message
            threading.Thread(target=run, args=(message,), daemon=True).start()
        elif message["do"] == "abort":
            stopped.add(message["id"])
        elif MODE != "deaf":
            gone = set(message["slots"])
            stopped.update(n for n, job in jobs.items() if gone & set(job["slots"]))
            say({"is": "withdrawn", "mark": message["mark"]})


main()

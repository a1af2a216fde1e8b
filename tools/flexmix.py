"""The acceptance run on real text: one anchor, four owners, one release, judged both ways.

Everything goes through the command line, each owner in its own process. What is finished is kept:
run it again and it goes on where it stopped.

    python tools/flexmix.py --data ../shared/data --out build/flexmix
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OWNERS = ("code", "creative", "math", "medical")
TEXTS = ("public", *OWNERS)


def main() -> int:
    options = parse_options()
    missing = [name for name in TEXTS if not (options.data / name / "train.jsonl.gz").exists()]
    if missing:
        print(f"skipped: no text for {', '.join(missing)} below {options.data}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    anchor = make_anchor(options)
    with ThreadPoolExecutor(options.jobs) as pool:
        bundles = list(pool.map(lambda owner: make_bundle(options, anchor, owner), OWNERS))
    release = options.out / "release"
    if not release.exists():
        moiety(options, "merge", anchor, *bundles, "--out", release)
    results = {routing: judge(options, release, routing) for routing in ("context", "token")}
    summary = {name: headline(result) for name, result in results.items()}
    (options.out / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True))
    for name, line in summary.items():
        print(f"{name:18} {line}")
    print(
        f"{time.monotonic() - begun:.0f} s in this run; details in {options.out / 'results.json'}"
    )
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/flexmix"))
    parser.add_argument("--preset", default="small")
    parser.add_argument("--anchor-tokens", type=int, default=5_000_000)
    parser.add_argument("--owner-tokens", type=int, default=819_200)
    parser.add_argument("--eval-tokens", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="owners trained side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    return parser.parse_args()


def make_anchor(options: argparse.Namespace) -> Path:
    anchor: Path = options.out / "anchor"
    if not anchor.exists():
        text = options.data / "public" / "train.jsonl.gz"
        words = ["anchor", "new", text, "--preset", options.preset, "--out", anchor]
        words += ["--tokens", options.anchor_tokens, "--seed", options.seed]
        words += ["--set", "budget.judge_every=100"]
        resume = ["--resume"] if anchor.with_name("anchor.training").exists() else []
        moiety(options, *words, *resume, threads=os.cpu_count())
    return anchor


def make_bundle(options: argparse.Namespace, anchor: Path, owner: str) -> Path:
    run, bundle = options.out / "runs" / owner, options.out / f"{owner}.expert"
    if not (run / "run.json").exists():
        words = ["train", anchor, options.data / owner / "train.jsonl.gz", "--owner", owner]
        words += ["--heldout", options.data / owner / "valid.jsonl.gz", "--out", run]
        words += ["--tokens", options.owner_tokens, "--seed", options.seed]
        moiety(options, *words, *(["--resume"] if run.exists() else []))
    if not bundle.exists():
        key = options.out / f"{owner}.pem"
        if not key.exists():
            moiety(options, "keys", "new", "--out", key)
        moiety(options, "pack", run, "--key", key, "--anchor", anchor, "--out", bundle)
    return bundle


def judge(options: argparse.Namespace, release: Path, routing: str) -> dict:
    words = ["eval", release, "--routing", routing, "--max-tokens", options.eval_tokens, "--json"]
    for name in TEXTS:
        words += ["--data", f"{name}={options.data / name / 'test.jsonl.gz'}"]
    if not (options.out / f"report-{routing}").exists():
        words += ["--out", options.out / f"report-{routing}"]
    said = moiety(options, *words, threads=os.cpu_count())
    return json.loads(said.strip().splitlines()[-1])


def headline(result: dict) -> str:
    bits = result["bits_per_byte"]
    public = bits["all"]["public"] - bits["anchor"]["public"]
    worst = max(result["removal"].values())
    mean = sum(bits["all"].values()) / len(bits["all"])
    return (
        f"gap closed {100 * result['gap_closed']:5.1f} %, mean {mean:.3f} bits per byte, "
        f"public {public:+.3f} against the anchor, worst removal {worst:+.3f}"
    )


def moiety(options: argparse.Namespace, *words: object, threads: int | None = None) -> str:
    command = [sys.executable, "-m", "moiety", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads or options.threads)}
    print("$ moiety " + " ".join(command[3:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

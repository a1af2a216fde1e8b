"""`moiety serve` beside `transformers serve`, each a process of its own, over HTTP.

Models of the same sizes with random weights, the same tokenizer and prompts, greedy, float32. Ours
routes by evidence over a release; theirs is a FlexOlmo of as many experts, all of which run on
every token. They take turns, so that a noisy machine is noisy for all of them; what counts are
ratios of tokens a second, counted by what each server says it generated.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/bench_http.py --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tests.tiny import VOCAB, language
from tools.racing import Contestant, medians, quotient, race
from tools.serving import OWNERS, SHAPE, free_port, make_release, request_bytes, running, send
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

ROUNDS = {"short": (16, 128), "long": (512, 64)}
"""Tokens of the prompt, about, and of the answer."""
OURS, BATCHED, ONE_BY_ONE = "moiety", "transformers, continuous batching", "transformers, generate"
ASKED = 1.3
SIZES = ["--cb-num-blocks", "96", "--cb-max-batch-tokens", "256"]
"""Given none it takes most of the memory there is, which is slow; these are enough for 16."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if find_spec("accelerate") is None:
        print("  skipped: transformers serve needs accelerate (pip install -e '.[eval]')")
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        contestants = start(Path(folder), stack)
        rows = [
            beside(contestants, name, count, options.rounds)
            for name in sorted(ROUNDS)
            for count in options.requests
        ]
    if options.json:
        print(json.dumps({"shape": SHAPE, "results": rows}))


def start(folder: Path, stack: ExitStack) -> dict[str, tuple[int, str]]:
    """Port and model of each server."""
    release, plain = make_release(folder / "world"), folder / "plain"
    make_theirs(release, plain)
    usage = f"sqlite:///{folder}/usage.sqlite"
    theirs = ["-m", "transformers.cli.transformers", "serve", str(plain), "--device", "cpu"]
    commands = {
        OURS: ["-m", "moiety", "serve", str(release), "--name", "mixture", "--usage", usage],
        BATCHED: [*theirs, "--continuous-batching", *SIZES],
        ONE_BY_ONE: theirs,
    }
    found = {}
    for number, (name, command) in enumerate(commands.items()):
        port, log = free_port(), folder / f"{number}.log"
        one = running([*command, "--port", str(port)], port, "/health", log, HF_HUB_OFFLINE="1")
        stack.enter_context(one)
        found[name] = (port, "mixture" if name == OURS else str(plain))
    return found


def make_theirs(release: Path, out: Path) -> None:
    config = FlexOlmoConfig(
        vocab_size=VOCAB,
        pad_token_id=1,
        eos_token_id=None,
        num_experts=len(OWNERS) + 1,
        num_experts_per_tok=len(OWNERS) + 1,
        **SHAPE,
    )
    torch.manual_seed(0)
    FlexOlmoForCausalLM(config).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(release / name, out / name)


def beside(
    servers: dict[str, tuple[int, str]], name: str, count: int, rounds: int
) -> dict[str, Any]:
    length, tokens = ROUNDS[name]
    contestants = {who: asking(*place, tokens) for who, place in servers.items()}

    def prompts(turn: int) -> list[str]:
        # New ones each round: ours keeps beginnings, which is not what is measured.
        return [prompt(1000 * turn + number, length) for number in range(count)]

    speeds = race(contestants, rounds, prompts)
    ratios = {who: quotient(speeds[OURS], speeds[who]) for who in (BATCHED, ONE_BY_ONE)}
    print(f"  {name} prompts, {count} at once: {medians(speeds)[OURS]:,.0f} tokens/s")
    for who, ratio in ratios.items():
        goal = f" (asked: {ASKED})" if who == BATCHED and count == 16 else ""
        print(f"    {ratio:.2f} times {who}{goal}")
    return {"prompts": name, "at_once": count, "ratios": ratios, "speeds": speeds}


def asking(port: int, model: str, tokens: int) -> Contestant:
    async def everybody(prompts: list[str]) -> float:
        begun = time.perf_counter()
        made = await asyncio.gather(*(ask(port, model, one, tokens) for one in prompts))
        return sum(made) / (time.perf_counter() - begun)

    return lambda prompts: asyncio.run(everybody(prompts))


def prompt(seed: int, tokens: int) -> str:
    """About so many tokens: a little less than two characters each."""
    return " ".join(language(seed, 100))[: int(tokens * 1.33)]


async def ask(port: int, model: str, text: str, tokens: int) -> int:
    body = {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0}
    reply = await send(port, request_bytes(body))
    assert reply.status == 200, reply
    return int(json.loads(reply.body)["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()

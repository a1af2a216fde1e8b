"""What a private step costs beside an ordinary one: time and peak memory, full and low rank.

The same pair, windows, precision and optimiser; every window is a record. Both kinds of step take
turns, so that a noisy machine is noisy for both. Peak memory is that of a process of its own.

    python tools/bench_private.py --preset small --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Olmo2ForCausalLM

from moiety.model import training_loss
from moiety.privacy import Tape, add_noise
from moiety.train import PRESETS
from moiety.train.compute import Compute, has_fast_bf16
from moiety.train.pair import Pair

Step = Callable[[], None]
KINDS = ("ordinary", "private")
ASKED = {256: 1.25, 1024: 1.6}
ASKED_MEMORY = 1.4


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.alone:
        kind, rank, window = options.alone.split(",")
        step = make_step(options, kind, int(rank) or None, int(window))
        step()
        step()
        print(own_peak())
        return
    rows = [compare(options, rank, window) for rank in (0, 16) for window in ASKED]
    if options.json:
        print(json.dumps({"preset": options.preset, "tokens": options.tokens, "results": rows}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=None)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, rank: int, window: int) -> dict[str, Any]:
    steps = {kind: make_step(options, kind, rank or None, window) for kind in KINDS}
    seconds = race(steps, options.rounds)
    memory = {kind: peak_memory(options, kind, rank, window) for kind in KINDS}
    ratios = [p / o for o, p in zip(seconds["ordinary"], seconds["private"], strict=True)]
    row = {
        "rank": rank or None,
        "window_tokens": window,
        "seconds": {kind: statistics.median(times) for kind, times in seconds.items()},
        "time_ratio": statistics.median(ratios),
        "megabytes": memory,
        "memory_ratio": memory["private"] / memory["ordinary"],
    }
    print(
        f"  {'full' if not rank else f'rank {rank}':8} window {window:5}: "
        f"{row['seconds']['ordinary']:6.2f} s, private {row['seconds']['private']:6.2f} s, "
        f"{row['time_ratio']:.2f} times (asked: {ASKED[window]}); "
        f"{memory['ordinary']:,.0f} MB, {row['memory_ratio']:.2f} times (asked: {ASKED_MEMORY})"
    )
    return row


def make_step(options: argparse.Namespace, kind: str, rank: int | None, window: int) -> Step:
    size = PRESETS[options.preset]
    precision = options.precision or ("bf16" if has_fast_bf16("cpu") else "fp32")
    compute = Compute("cpu", precision == "bf16", compiled=False, checkpoint_activations=False)
    config: Any = size.model_config(separator=0, pad=1, max_positions=1024)
    backbone = Olmo2ForCausalLM(config)
    pair = Pair(backbone, torch.randn(size.vocab), rank=rank, seed=0)
    compute.prepare_frozen(backbone)
    decoder = compute.decoder(backbone)
    parameters = pair.trainable()
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, fused=True)
    windows = options.tokens // window
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, size.vocab, (windows, window + 1), generator=generator)
    documents = torch.arange(windows)[:, None].expand(windows, window)
    tape = Tape(parameters)
    noise = np.random.default_rng(0)

    def loss() -> torch.Tensor:
        pair.expect(tokens[:, :-1], documents)
        with compute.autocast():
            total = training_loss(backbone, tokens[:, :-1], tokens[:, 1:], decoder, reduction="sum")
        return total / window

    def ordinary() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()

    def private() -> None:
        optimizer.zero_grad(set_to_none=True)
        with tape.recording(np.arange(windows), window):
            loss().backward()
        sums = tape.clipped(1.0).sums
        add_noise(sums, 1.0, noise)
        for name, parameter in parameters.items():
            parameter.grad = sums[name].div_(windows)
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()

    if kind == "ordinary":
        return ordinary
    pair.multiply_by(tape.product)
    return private


def race(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            begun = time.perf_counter()
            step()
            seconds[kind].append(time.perf_counter() - begun)
    return seconds


def own_peak() -> float:
    """Megabytes. Not ``getrusage``: a child begins with the peak of the process that made it."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_memory(options: argparse.Namespace, kind: str, rank: int, window: int) -> float:
    words = [sys.executable, __file__, "--alone", f"{kind},{rank},{window}"]
    words += ["--preset", options.preset, "--tokens", str(options.tokens)]
    words += ["--threads", str(options.threads)]
    words += ["--precision", options.precision] if options.precision else []
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()

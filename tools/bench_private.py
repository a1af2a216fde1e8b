"""What a private step costs beside an ordinary one: time and peak memory, full and low rank.

The same pair, windows, precision and optimiser; every window is a record. Both kinds of step take
turns, so that a noisy machine is noisy for both. Peak memory is that of a process of its own.

    python tools/bench_private.py --preset small --json

Where Opacus is installed (``pip install opacus==1.6.0``; nothing here depends on it) its ghost
clipping takes turns with them, at full rank. It cannot clip a mixture, so it trains what it can:
the feed-forward matrices of a dense model of the same size, against an ordinary step of that model.

Legend: B window, T position, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Olmo2ForCausalLM

from moiety import family
from moiety.model import training_loss
from moiety.privacy import Tape, add_noise
from moiety.train import PRESETS
from moiety.train.compute import Compute, has_fast_bf16
from moiety.train.pair import Pair

Step = Callable[[], None]
KINDS = ("ordinary", "private")
DENSE_KINDS = ("dense", "opacus")
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
    if not find_spec("opacus"):
        print("  Opacus is not installed and does not take part: pip install opacus==1.6.0")
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
    with_opacus = not rank and find_spec("opacus")
    kinds = KINDS + DENSE_KINDS if with_opacus else KINDS
    seconds = race(
        {kind: make_step(options, kind, rank or None, window) for kind in kinds}, options
    )
    memory = {kind: peak_memory(options, kind, rank, window) for kind in kinds}
    row = {
        "rank": rank or None,
        "window_tokens": window,
        **against(*KINDS, seconds, memory),
    }
    print(
        f"  {'full' if not rank else f'rank {rank}':8} window {window:5}: {told(row, *KINDS)} "
        f"(asked: {ASKED[window]} and {ASKED_MEMORY})"
    )
    if with_opacus:
        row["opacus"] = against(*DENSE_KINDS, seconds, memory)
        print(f"  {'':8} {'':12}  {told(row['opacus'], *DENSE_KINDS)}")
    return row


def against(
    base: str, other: str, seconds: dict[str, list[float]], memory: dict[str, float]
) -> dict[str, Any]:
    ratios = [o / b for b, o in zip(seconds[base], seconds[other], strict=True)]
    return {
        "seconds": {kind: statistics.median(seconds[kind]) for kind in (base, other)},
        "time_ratio": statistics.median(ratios),
        "time_ratios": ratios,
        "megabytes": {kind: memory[kind] for kind in (base, other)},
        "memory_ratio": memory[other] / memory[base],
    }


def told(row: dict[str, Any], base: str, other: str) -> str:
    return (
        f"{base} {row['seconds'][base]:6.2f} s, {row['megabytes'][base]:,.0f} MB; "
        f"{other} {row['seconds'][other]:6.2f} s, {row['time_ratio']:.2f} times "
        f"({min(row['time_ratios']):.2f} to {max(row['time_ratios']):.2f}), "
        f"memory {row['memory_ratio']:.2f} times"
    )


def make_step(options: argparse.Namespace, kind: str, rank: int | None, window: int) -> Step:
    size = PRESETS[options.preset]
    precision = options.precision or ("bf16" if has_fast_bf16("cpu") else "fp32")
    compute = Compute("cpu", precision == "bf16", compiled=False, checkpoint_activations=False)
    config: Any = size.model_config(separator=0, pad=1, max_positions=1024)
    backbone = Olmo2ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    shape = (options.tokens // window, window + 1)
    tokens_BT = torch.randint(2, size.vocab, shape, generator=generator)
    if kind in DENSE_KINDS:
        return make_dense_step(kind, compute, backbone, tokens_BT)
    pair = Pair(backbone, torch.randn(size.vocab), rank=rank, seed=0)
    return make_pair_step(kind, compute, pair, tokens_BT)


def make_pair_step(kind: str, compute: Compute, pair: Pair, tokens_BT: Tensor) -> Step:
    backbone = pair.backbone
    windows, window = len(tokens_BT), tokens_BT.shape[1] - 1
    compute.prepare_frozen(backbone)
    decoder = compute.decoder(backbone)
    parameters = pair.trainable()
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, fused=True)
    documents_BT = torch.arange(windows)[:, None].expand(windows, window)
    tape = Tape(parameters)
    noise = np.random.default_rng(0)

    def loss() -> Tensor:
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        pair.expect(inputs_BT, documents_BT)
        with compute.autocast():
            total = training_loss(backbone, inputs_BT, targets_BT, decoder, reduction="sum")
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


def make_dense_step(
    kind: str, compute: Compute, backbone: Olmo2ForCausalLM, tokens_BT: Tensor
) -> Step:
    """Written as a user of Opacus would, and the ordinary step as the same without it."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name.split(".")[-2] in family.MATRICES)
    compute.prepare_frozen(backbone)
    backbone.train()
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer: Any = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    criterion: Any = torch.nn.CrossEntropyLoss()
    model: Any = backbone

    def logits() -> Tensor:
        out: Tensor = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        return out

    def ordinary() -> None:
        optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            loss = criterion(logits().flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    def ghost() -> None:
        optimizer.zero_grad(set_to_none=True)
        with compute.autocast():
            logits_BTV = logits()
            # With the shape it means each window's losses by itself: a window is a sample.
            loss = criterion(
                logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), shape=logits_BTV.shape
            )
        loss.backward()  # twice: for the norms, then weighted by them
        optimizer.step()

    if kind == "dense":
        return ordinary
    model, optimizer, criterion = under_opacus(backbone, optimizer, criterion, len(tokens_BT))
    return ghost


def under_opacus(
    backbone: Olmo2ForCausalLM, optimizer: Any, criterion: Any, windows: int
) -> tuple[Any, Any, Any]:
    """What its engine makes for ghost clipping, without the engine's own drawing of batches."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    # Nothing below the first trained matrices wants a gradient; their hooks say so every time.
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    model = GradSampleModuleFastGradientClipping(backbone, max_grad_norm=1.0)
    optimizer = DPOptimizerFastGradientClipping(
        optimizer, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=windows
    )
    return model, optimizer, DPLossFastGradientClipping(model, optimizer, criterion)


def race(steps: dict[str, Step], options: argparse.Namespace) -> dict[str, list[float]]:
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(options.rounds):
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

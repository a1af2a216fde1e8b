"""Training speed of the anchored pair beside transformers' own FlexOlmo with two experts.

Same sizes, frozen parts, batch, precision and optimiser; the contestants take turns in one run, so
that a noisy machine is noisy for all of them. transformers keeps both experts in one tensor, so
its anchor half is frozen the way the reference freezes it: its gradient is set to zero.

    python tools/bench_training.py --preset small --precision bf16 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2ForCausalLM

from moiety.model import training_loss
from moiety.train import PRESETS
from moiety.train.compute import Compute, has_fast_bf16
from moiety.train.pair import Pair
from moiety.train.presets import Preset

Step = Callable[[], None]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    size = PRESETS[options.preset]
    tokens = torch.randint(
        2,
        size.vocab,
        (options.windows, options.window_tokens + 1),
        generator=torch.Generator().manual_seed(0),
    )
    contestants: dict[str, Step] = {
        "moiety, compiled": ours(size, tokens, options.precision, rank=None, compiled=True),
        "moiety": ours(size, tokens, options.precision, rank=None, compiled=False),
        "moiety, rank 16, compiled": ours(size, tokens, options.precision, rank=16, compiled=True),
        "transformers, eager experts": theirs(size, tokens, options.precision, "eager"),
        "transformers, grouped experts": theirs(size, tokens, options.precision, "grouped_mm"),
    }
    chosen = "bf16" if has_fast_bf16("cpu") else "fp32"
    if chosen != options.precision:
        name = f"moiety, compiled, {chosen} as auto picks"
        contestants[name] = ours(size, tokens, chosen, rank=None, compiled=True)
    peak = matmul_peak(options.precision)
    seconds = race(contestants, options.rounds)
    report(options, size, tokens.shape[0] * options.window_tokens, seconds, peak)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def ours(
    size: Preset, tokens: torch.Tensor, precision: str, rank: int | None, compiled: bool
) -> Step:
    compute = Compute("cpu", precision == "bf16", compiled, checkpoint_activations=False)
    backbone = Olmo2ForCausalLM(dense_config(size))
    table = torch.randn(backbone.config.vocab_size)
    pair = Pair(backbone, table, rank=rank, seed=0)
    compute.prepare_frozen(backbone)
    decoder = compute.decoder(backbone)
    parameters = list(pair.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    documents = torch.arange(tokens.shape[0])[:, None].expand(tokens[:, :-1].shape)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pair.expect(tokens[:, :-1], documents)
        with compute.autocast():
            loss = training_loss(backbone, tokens[:, :-1], tokens[:, 1:], decoder)
        finish(loss, parameters, optimizer)

    return step


def theirs(size: Preset, tokens: torch.Tensor, precision: str, experts: str) -> Step:
    dense = dense_config(size)
    config = FlexOlmoConfig(
        vocab_size=dense.vocab_size,
        hidden_size=dense.hidden_size,
        intermediate_size=dense.intermediate_size,
        num_hidden_layers=dense.num_hidden_layers,
        num_attention_heads=dense.num_attention_heads,
        num_key_value_heads=dense.num_key_value_heads,
        max_position_embeddings=dense.max_position_embeddings,
        pad_token_id=1,
        eos_token_id=0,
        num_experts=2,
        num_experts_per_tok=2,
        experts_implementation=experts,
    )
    model = FlexOlmoForCausalLM(config).train()
    parameters = []
    for name, parameter in model.named_parameters():
        trained = ".mlp.experts." in name or name.endswith("mlp.gate.weight")
        parameter.requires_grad_(trained)
        if trained:
            parameter.register_hook(zero_first)
            parameters.append(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        finish(loss, parameters, optimizer)

    return step


def zero_first(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.clone()
    gradient[0] = 0
    return gradient


def dense_config(size: Preset) -> Any:
    return size.model_config(separator=0, pad=1, max_positions=1024)


def finish(loss: torch.Tensor, parameters: list[Any], optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def race(contestants: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    for step in contestants.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def matmul_peak(precision: str) -> float:
    """Best floating-point operations a second of a large square product in this precision."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best


def flops_per_token(size: Preset, window_tokens: int) -> float:
    """Products the pair cannot do without: forward, gradients of inputs, the expert's weights."""
    attention = 4 * size.width**2 + 2 * window_tokens * size.width
    block = 3 * size.width * size.hidden
    head = size.vocab * size.width
    forward = size.layers * (attention + 2 * block) + head
    return 2 * (2 * forward + size.layers * block)


def report(
    options: argparse.Namespace,
    size: Preset,
    tokens: int,
    seconds: dict[str, list[float]],
    peak: float,
) -> None:
    speed = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    theirs_best = max(value for name, value in speed.items() if name.startswith("transformers"))
    needed = flops_per_token(size, options.window_tokens)
    print(
        f"{options.preset}, {options.precision}, {options.threads} threads, {tokens} tokens a step"
    )
    print(f"matrix-multiply peak in this precision: {peak / 1e9:,.0f} GFLOP/s")
    rows = {}
    for name, value in speed.items():
        share = value * needed / peak
        rows[name] = {"tokens_per_second": value, "ratio": value / theirs_best, "peak_share": share}
        print(
            f"  {name:40} {value:8,.0f} tokens/s  {value / theirs_best:5.2f} x the best of "
            f"transformers  {share:5.1%} of peak"
        )
    if options.json:
        print(json.dumps({"peak_flops": peak, "results": rows, "threads": options.threads}))


if __name__ == "__main__":
    main()

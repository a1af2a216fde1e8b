"""Throughput of the local engine beside transformers' continuous batching and plain generation.

Random weights of the same sizes, every expert run on every token, greedy, no text in between: the
engines that `moiety serve` and `transformers serve --continuous-batching` put behind their doors.
Contestants take turns, so that a noisy machine is noisy for all of them; what counts are ratios.

    OMP_NUM_THREADS=1 PYTHONPATH=. taskset -c 1 python tools/bench_serve.py --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tools.racing import Contestant, Speeds, asking, medians, quotient, race
from transformers import (
    ContinuousBatchingConfig,
    FlexOlmoConfig,
    FlexOlmoForCausalLM,
    GenerationConfig,
    Olmo2ForCausalLM,
)
from transformers.models.olmo2.modeling_olmo2 import Olmo2MLP
from transformers.utils import logging

from moiety.model import Mixture
from moiety.model.layer import MixtureLayer, Routing
from moiety.serve.engine import Limits, LocalEngine
from moiety.train import PRESETS

POSITIONS = 1024
OWNERS = 4
ROUNDS = {"short": (16, 128), "long": (512, 64)}
"""Tokens of the prompt, and of the answer."""
ASKED = {"transformers, continuous batching": 1.3}
ASKED_MASKS = {"one mask": 0.97, "mixed masks": 0.90}

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    pairs = [(name, count) for name in options.prompts for count in options.requests]
    rows = [beside_transformers(options, name, count) for name, count in pairs]
    rows += [masks(options, name) for name in options.prompts]
    if options.json:
        print(json.dumps({"preset": options.preset, "clock": options.clock, "results": rows}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--prompts", nargs="+", choices=sorted(ROUNDS), default=sorted(ROUNDS))
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def beside_transformers(options: argparse.Namespace, name: str, count: int) -> dict[str, Any]:
    clock, tokens = CLOCKS[options.clock], ROUNDS[name][1]
    cached = continuous(theirs(options.preset), count, name)
    contestants = {
        "local": local(mixture(options.preset, OWNERS), everyone(OWNERS), tokens, clock),
        "transformers, continuous batching": timed(cached, tokens, clock),
        "transformers, generate": timed(generating(theirs(options.preset)), tokens, clock),
    }
    speeds = race(contestants, options.rounds, prompts_of(options.preset, name, count))
    return report(f"{name} prompts, {count} at once", speeds, "local", ASKED)


def masks(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """All may use all but one expert: who never had it, all but the same, each but another."""
    clock, tokens = CLOCKS[options.clock], ROUNDS[name][1]
    slots = everyone(OWNERS)[0]
    without = [tuple(slot for slot in slots if slot != gone) for gone in slots[1:]]
    fewer = mixture(options.preset, OWNERS - 1)
    contestants = {
        "no mask": local(fewer, everyone(OWNERS - 1), tokens, clock),
        "one mask": local(mixture(options.preset, OWNERS), without[:1], tokens, clock),
        "mixed masks": local(mixture(options.preset, OWNERS), without, tokens, clock),
    }
    speeds = race(contestants, options.rounds, prompts_of(options.preset, name, 16))
    ratios = {
        "one mask": quotient(speeds["one mask"], speeds["no mask"]),
        "mixed masks": quotient(speeds["mixed masks"], speeds["one mask"]),
    }
    for what, ratio in ratios.items():
        print(f"  {name} prompts, {what}: {ratio:.3f} times (asked: {ASKED_MASKS[what]})")
    return {"what": f"{name} prompts, masks", "ratios": ratios, "speeds": medians(speeds)}


def prompts_of(preset: str, name: str, count: int) -> Callable[[int], list[list[int]]]:
    """The same prompts in every round."""
    drawn = torch.randint(2, PRESETS[preset].vocab, (count, ROUNDS[name][0])).tolist()
    return lambda turn: drawn


def mixture(preset: str, owners: int) -> Mixture:
    config: Any = PRESETS[preset].model_config(separator=0, pad=1, max_positions=POSITIONS)
    backbone = Olmo2ForCausalLM(config).eval().requires_grad_(False)
    slots = tuple(range(owners + 1))
    table_SV = 0.1 * torch.randn(len(slots), config.vocab_size)
    routing = Routing(top_k=len(slots), slots=slots, table_SV=table_SV)
    for layer in backbone.model.layers:
        layer.mlp = MixtureLayer([layer.mlp, *(Olmo2MLP(config) for _ in range(owners))], routing)
    return Mixture(backbone, routing, ["anchor", *(f"owner-{n}" for n in slots[1:])], None)


def theirs(preset: str) -> FlexOlmoForCausalLM:
    ours: Any = PRESETS[preset].model_config(separator=0, pad=1, max_positions=POSITIONS)
    config = FlexOlmoConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads,
        max_position_embeddings=POSITIONS,
        pad_token_id=1,
        eos_token_id=0,
        num_experts=OWNERS + 1,
        num_experts_per_tok=OWNERS + 1,
    )
    return FlexOlmoForCausalLM(config).eval().requires_grad_(False)


def everyone(owners: int) -> list[tuple[int, ...]]:
    return [tuple(range(owners + 1))]


def local(model: Mixture, sets: list[tuple[int, ...]], tokens: int, clock: Clock) -> Contestant:
    # No cache of beginnings: every round brings the same prompts.
    return asking(LocalEngine(model, Limits(cache_bytes=0)), sets, tokens, clock)


def timed(run: Callable[[list[list[int]], int], None], tokens: int, clock: Clock) -> Contestant:
    def go(prompts: list[list[int]]) -> float:
        begun = clock()
        run(prompts, tokens)
        return len(prompts) * tokens / (clock() - begun)

    return go


def continuous(
    model: FlexOlmoForCausalLM, count: int, name: str
) -> Callable[[list[list[int]], int], None]:
    # Given no sizes it takes most of the memory there is, which is slow; these are enough.
    blocks = count * (sum(ROUNDS[name]) // 256 + 2)
    sizes = {"num_blocks": blocks, "max_batch_tokens": 256, "max_requests_per_batch": count}
    shared = ContinuousBatchingConfig(**sizes, allow_block_sharing=False)
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=1)
    manager = model.init_continuous_batching(
        generation_config=greedy, continuous_batching_config=shared
    )
    manager.start()

    def run(prompts: list[list[int]], tokens: int) -> None:
        for prompt in prompts:
            manager.add_request(prompt, max_new_tokens=tokens)
        done = 0
        while done < len(prompts):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert len(result.generated_tokens) == tokens, result.error
                done += 1

    return run


def generating(model: FlexOlmoForCausalLM) -> Callable[[list[list[int]], int], None]:
    def run(prompts: list[list[int]], tokens: int) -> None:
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=1
        )
        inputs = torch.tensor(prompts)
        made: Any = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=greedy
        )
        assert made.shape[1] == inputs.shape[1] + tokens

    return run


def report(what: str, speeds: Speeds, ours: str, asked: dict[str, float]) -> dict[str, Any]:
    ratios = {who: quotient(speeds[ours], speeds[who]) for who in speeds if who != ours}
    print(f"  {what}: {statistics.median(speeds[ours]):,.0f} tokens/s")
    for who, ratio in ratios.items():
        goal = f" (asked: {asked[who]})" if who in asked else ""
        print(f"    {ratio:.2f} times {who}{goal}")
    return {"what": what, "ratios": ratios, "speeds": medians(speeds)}


if __name__ == "__main__":
    main()

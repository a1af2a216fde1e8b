"""vLLM behind our engine beside plain vLLM on the same plain checkpoint, and what masks cost.

Both are streamed from vLLM's asynchronous engine, greedy, float32. Plain vLLM is timed inside its
own process, ours at the near end of the lines: with the process between, the masks, and the routing
that is followed for every token. Contestants take turns, each round with prompts of its own.

    PYTHONPATH=. python tools/bench_vllm.py --release RELEASE --json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from tools.racing import Contestant, asking, medians, quotient, race

from moiety.merge import exporting
from moiety.serve.sizes import Sizes
from moiety.serve.vllm import VllmEngine

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
RELEASE = ROOT / "studies" / "out" / "flexmix-small" / "seed-0" / "release"
ROUNDS = {"short": (16, 128), "long": (512, 64)}
"""Tokens of the prompt, and of the answer."""


def main() -> None:
    options = parse_options()
    if not PYTHON.exists():
        print("  skipped: no vLLM here (make vllm)")
        return
    if not options.release.exists():
        print(f"  skipped: no release at {options.release} (make study-small, or --release)")
        return
    sizes = Sizes(enforce_eager=options.eager, kv_cache_gib=0.5)
    engine = VllmEngine(options.release, PYTHON, sizes)
    with tempfile.TemporaryDirectory() as folder:
        exporting.export_plain(options.release, Path(folder) / "model")
        plain = Plain(Path(folder) / "model", sizes.args(engine.max_context))
        try:
            rows = [
                beside(options, engine, plain, name, count)
                for name in options.prompts
                for count in options.requests
            ]
        finally:
            plain.close()
            engine.close()
    if options.json:
        print(json.dumps({"release": options.release.name, "results": rows}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, default=RELEASE)
    parser.add_argument("--prompts", nargs="+", choices=sorted(ROUNDS), default=sorted(ROUNDS))
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def beside(
    options: argparse.Namespace, engine: VllmEngine, plain: Plain, name: str, count: int
) -> dict[str, Any]:
    slots = tuple(range(len(engine.names)))
    without = [tuple(slot for slot in slots if slot != gone) for gone in slots[1:]]
    length, tokens = ROUNDS[name]
    contestants: dict[str, Contestant] = {
        "plain vLLM": lambda prompts: plain.run(prompts, tokens),
        "ours, all experts": asking(engine, [slots], tokens),
        "ours, one mask": asking(engine, without[:1], tokens),
    }
    if count > 1:
        contestants["ours, mixed masks"] = asking(engine, without, tokens)

    def prompts(turn: int) -> list[list[int]]:
        # New ones each time: both keep beginnings, which is not what is measured.
        return [list(row) for row in torch.randint(2, 300, (count, length)).tolist()]

    speeds = race(contestants, options.rounds, prompts)
    middle = medians(speeds)
    print(f"  {name} prompts, {count} at once: plain {middle['plain vLLM']:,.0f} tokens/s")
    ratios = {who: quotient(values, speeds["plain vLLM"]) for who, values in speeds.items()}
    for who, ratio in ratios.items():
        print(f"    {ratio:.3f} times plain: {who}")
    return {"what": f"{name}, {count}", "speeds": middle, "ratios": ratios}


class Plain:
    """vLLM without the plugin, in a process of its own, timed there."""

    def __init__(self, model: Path, args: dict[str, Any]) -> None:
        code = Path(__file__).with_name("plain_vllm.py")
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._popen = subprocess.Popen([str(PYTHON), str(code)], text=True, **pipes)
        self._ask({"model": str(model), "args": args})

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """New tokens a second."""
        seconds = float(self._ask({"prompts": prompts, "tokens": tokens}))
        return len(prompts) * tokens / seconds

    def close(self) -> None:
        self._popen.stdin.close()  # type: ignore[union-attr]
        self._popen.wait(60)

    def _ask(self, message: dict[str, Any]) -> Any:
        self._popen.stdin.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
        self._popen.stdin.flush()  # type: ignore[union-attr]
        return json.loads(self._popen.stdout.readline())  # type: ignore[union-attr]


if __name__ == "__main__":
    main()

"""vLLM as anybody runs it, for ``bench_vllm.py``; runs in vLLM's environment.

Reads what to start and then prompts, a JSON object a line; answers with seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    # What vLLM prints is not for whoever reads the answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": "0"}

    def say(value: float) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    asyncio.run(serve(json.loads(sys.stdin.readline()), say))


async def serve(start: dict[str, Any], say: Any) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    args = AsyncEngineArgs(
        model=start["model"],
        skip_tokenizer_init=True,
        generation_config="vllm",
        enable_prefix_caching=True,
        disable_log_stats=True,
        **start["args"],
    )
    engine = AsyncLLM.from_engine_args(args)
    say(0.0)
    number = 0
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        begun = time.perf_counter()
        tasks = []
        for prompt in asked["prompts"]:
            number += 1
            tasks.append(generate(engine, prompt, asked["tokens"], str(number)))
        await asyncio.gather(*tasks)
        say(time.perf_counter() - begun)
    engine.shutdown()


async def generate(engine: Any, prompt: list[int], tokens: int, name: str) -> None:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    made = 0
    async for output in engine.generate(TokensPrompt(prompt_token_ids=prompt), parameters, name):
        made += len(output.outputs[0].token_ids)
    assert made == tokens


if __name__ == "__main__":
    main()

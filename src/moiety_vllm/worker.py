"""The worker: reads what is asked from stdin, tells tokens on stdout, until stdin ends.

One JSON object a line each way. The first line says what to start:
``{"model", "experts", "args"}``; then come ``run``, ``abort`` and ``withdraw`` under ``do``. It
answers ``hello``, ``ready``, ``steps``, ``withdrawn`` and ``failed`` under ``is``. A ``steps`` line
holds rows ``[id, [step, ...], reason or null]``, as many as there are, and a step is
``[token, logprob, [[token, logprob], ...], of the prompt]``.

Nobody but the server that started it can talk to it: it opens no port of its own. Its group of
processes ends with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

PROTOCOL = 1
"""To be raised with every change to the lines."""

CPU_WIDTH = 32
"""What widths are multiples of where experts are computed on a processor."""

PROBE = "probe"
WATCH_SECONDS = 1.0
LOG = logging.getLogger(__name__)
Message = dict[str, Any]
Row = tuple[int, list[list[Any]], str | None]


def main() -> None:
    """Runs until stdin ends, then takes all processes of the group along."""
    lines, out = _own_pipes()
    try:
        asyncio.run(_serve(lines, out))
    except Exception as error:  # told to the server, whatever it is
        out.say({"is": "failed", "words": f"{type(error).__name__}: {error}"[:500]})
    finally:
        _end()


def _end() -> None:
    """Ends all processes of the group: vLLM's can outlive one another, and none of them shall."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


class _Out:
    """Where lines go. What anything prints goes elsewhere."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="ascii")

    def say(self, message: Message) -> None:
        """Writes a line."""
        self._file.write(json.dumps(message, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()


def _own_pipes() -> tuple[Iterator[str], _Out]:
    """Both pipes under numbers nobody knows: stdin is empty now, and prints go to stderr."""
    taken_in, taken_out = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return iter(os.fdopen(taken_in, encoding="ascii")), _Out(taken_out)


async def _serve(lines: Iterator[str], out: _Out) -> None:
    import vllm

    out.say({"is": "hello", "protocol": PROTOCOL, "vllm": vllm.__version__})
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Message]()

    def read() -> None:
        # Ended in here: starting an engine keeps the loop, and a server that ends must be heard.
        try:
            for line in lines:
                loop.call_soon_threadsafe(queue.put_nowait, json.loads(line))
        finally:
            _end()

    threading.Thread(target=read, daemon=True).start()
    worker = _Worker(await _open(await queue.get()), out)
    out.say({"is": "ready"})
    watching = asyncio.ensure_future(worker.watch())
    while not watching.done():
        worker.take(await queue.get())


async def _open(start: Message) -> Any:
    """An engine whose masks were seen to work."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    _check_shape(Path(start["model"]))
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=start["model"],
            skip_tokenizer_init=True,
            generation_config="vllm",
            enable_prefix_caching=True,
            disable_log_stats=True,
            worker_extension_cls="moiety_vllm.plugin.WorkerExtension",
            **start["args"],
        )
    )
    probe: Message = {"id": PROBE, "prompt": [0], "slots": [0], "salt": PROBE, "max_tokens": 1}
    probe |= {"temperature": 0.0, "top_p": 1.0, "seed": None, "stop": [], "top": 0, "scored": False}
    async for _ in _outputs(engine, probe):
        pass
    for problem in await engine.collective_rpc("moiety_check"):
        if problem:
            raise RuntimeError(problem)
    return engine


def _check_shape(model: Path) -> None:
    """On a processor vLLM computes with some shapes only, and says so late and in other words.

    Raises:
        ValueError: heads or a width that it does not compute with.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = json.loads((model / "config.json").read_text("utf-8"))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if width // heads not in sizes or width % CPU_WIDTH:
        raise ValueError(
            f"on a processor vLLM takes heads of {', '.join(map(str, sizes))} and widths that are "
            f"multiples of {CPU_WIDTH}; this model has heads of {width // heads} and, with "
            f"evidence beside, a width of {width}"
        )


def _outputs(engine: Any, job: Message) -> Any:
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(
        temperature=job["temperature"],
        top_p=job["top_p"],
        seed=job["seed"],
        max_tokens=max(1, job["max_tokens"]),
        stop_token_ids=job["stop"],
        ignore_eos=True,
        logprobs=job["top"],
        prompt_logprobs=job["top"] if job["scored"] else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"experts": job["slots"]},
    )
    prompt = TokensPrompt(prompt_token_ids=job["prompt"], cache_salt=job["salt"])
    return engine.generate(prompt, parameters, str(job["id"]))


class _Worker:
    """An engine at work. Lives in one event loop."""

    def __init__(self, engine: Any, out: _Out) -> None:
        self._engine, self._out = engine, out
        self._jobs: dict[int, tuple[Message, asyncio.Task[str]]] = {}
        self._rows: list[Row] = []
        self._others: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def take(self, message: Message) -> None:
        """Does what a line says."""
        if message["do"] == "run":
            task = asyncio.ensure_future(self._run(message))
            self._jobs[message["id"]] = (message, task)
            task.add_done_callback(partial(self._ended, message["id"]))
        elif message["do"] == "abort":
            self._abort(lambda job: job["id"] == message["id"])
        else:
            assert message["do"] == "withdraw"
            other = asyncio.ensure_future(self._withdraw(message))
            self._others.add(other)
            other.add_done_callback(self._others.discard)

    def _abort(self, wanted: Callable[[Message], bool]) -> list[asyncio.Task[str]]:
        tasks = [task for job, task in self._jobs.values() if wanted(job)]
        for task in tasks:
            task.cancel()
        return tasks

    async def _withdraw(self, message: Message) -> None:
        """Ends who uses the slots, then closes them in every process that computes.

        The answer comes after the step under way: calls of a worker process are taken in order.
        """
        gone = set(message["slots"])
        tasks = self._abort(lambda job: not gone.isdisjoint(job["slots"]))
        if tasks:
            await asyncio.wait(tasks)
        try:
            await self._engine.collective_rpc("moiety_withdraw", args=(message["slots"],))
        except Exception as error:
            self._fail(error)
        self._out.say({"is": "withdrawn", "mark": message["mark"]})

    async def _run(self, job: Message) -> str:
        reason = "failed"
        try:
            async with aclosing(_outputs(self._engine, job)) as outputs:
                async for output in outputs:
                    steps, sound, ended = _steps(job, output)
                    if not sound:
                        return "failed"
                    reason = ended or reason
                    self._tell((job["id"], steps, None))
        except Exception as error:
            if self._engine.errored:
                self._fail(error)
            LOG.exception("a request failed")
        return reason

    def _ended(self, number: int, task: asyncio.Task[str]) -> None:
        # Also where a task was cancelled before it had begun.
        del self._jobs[number]
        self._tell((number, [], "cancelled" if task.cancelled() else task.result()))

    async def watch(self) -> None:
        """Ends this process when the engine behind it has died, also where nobody asks."""
        while not self._engine.errored:
            await asyncio.sleep(WATCH_SECONDS)
        self._fail(self._engine.dead_error)

    def _fail(self, error: BaseException) -> None:
        """The engine is dead: this process is of no further use."""
        self._out.say({"is": "failed", "words": f"{type(error).__name__}: {error}"[:500]})
        _end()

    def _tell(self, row: Row) -> None:
        """Tells it with whatever else this turn of the loop brings: one line a step."""
        if not self._rows:
            self._loop.call_soon(self._flush)
        self._rows.append(row)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._out.say({"is": "steps", "rows": rows})


def _steps(job: Message, output: Any) -> tuple[list[list[Any]], bool, str | None]:
    """What an output tells: steps, whether all of them are numbers, and why it ended, if it did."""
    steps = []
    for token, told in zip(job["prompt"][1:], (output.prompt_logprobs or [])[1:], strict=False):
        steps.append(_step(job, token, told, prompt=True))
    (made,) = output.outputs
    tokens = made.token_ids if job["max_tokens"] else []
    for token, told in zip(tokens, made.logprobs or [], strict=False):
        if token not in job["stop"]:
            steps.append(_step(job, token, told, prompt=False))
    sound = all(math.isfinite(number) for step in steps for number in _numbers(step))
    return steps, sound, made.finish_reason


def _step(job: Message, token: int, told: Any, *, prompt: bool) -> list[Any]:
    ranked = sorted((one.rank, other, one.logprob) for other, one in told.items())
    top = [[other, logprob] for rank, other, logprob in ranked if rank <= job["top"]]
    return [token, told[token].logprob, top[: job["top"]], prompt]


def _numbers(step: list[Any]) -> list[float]:
    return [step[1], *(logprob for _, logprob in step[2])]

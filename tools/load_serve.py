"""A real server under load: many clients at once, memory over many requests, short beside long.

- crowd: 200 clients that stream or not, with other experts and keys, some of which hang up midway,
  read slowly or send garbage. Every whole answer is compared with the same request alone.
- memory: resident memory, threads and open files over 10,000 requests, after a warm-up that fills
  the cache of beginnings.
- latency: short requests one after another, alone, beside long ones of another key, beside a
  tenant that keeps a hundred waiting, and, for comparison, as one of that tenant's own.

    OMP_NUM_THREADS=1 python tools/load_serve.py --out studies/out/load
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny import language
from tools.serving import (
    OWNERS,
    SHAPE,
    Reply,
    Running,
    free_port,
    make_release,
    request_bytes,
    running,
    send,
    write_policy,
)

NAME = "mixture"
KEYS = {
    "all": {"experts": "all", "purposes": ["any"]},
    "half": {"experts": list(OWNERS[:2]), "purposes": ["any"]},
    "greedy": {"experts": "all", "purposes": ["any"]},
    "long": {"experts": "all", "purposes": ["any"]},
    "short": {"experts": "all", "purposes": ["any"]},
}
MODELS = {
    "all": [NAME, f"{NAME}+ann", f"{NAME}-ben", f"{NAME}+cleo+dan", f"{NAME}-dan"],
    "half": [NAME, f"{NAME}+ann", f"{NAME}+ben"],
}
QUESTIONS = 40
BACK_OFF_MAX_SECONDS = 5.0
FLAT_KIB = 512
"""Memory that may be gained in 1,000 requests before we speak of a leak."""
FLAT_HANDLES = 2
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"GET /nowhere HTTP/9.9\r\nConnection: close\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    request_bytes({"model": NAME}, "no-such-key"),
    request_bytes([], None, "/nowhere"),
)


@dataclass
class Crowd:
    """What many clients were told. ``odd`` holds what nobody provoked."""

    statuses: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    tokens: int = 0
    odd: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """A greedy request, and what it is answered alone."""

    key: str
    body: dict[str, Any]
    answer: str = ""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse_options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    release = make_release(options.out / "world", json.loads(options.shape))
    secrets = write_policy(options.out, KEYS)
    port = free_port()
    command = ["-m", "moiety", "serve", str(release), "--policy", str(options.out / "policy.toml")]
    command += ["--port", str(port), "--name", NAME]
    command += ["--usage", f"sqlite:///{options.out.absolute()}/usage.sqlite"]
    log = options.out / "server.log"
    told: dict[str, Any] = {"shape": options.shape, "threads": options.threads}
    with running(command, port, "/health", log, OMP_NUM_THREADS=options.threads) as server:
        asyncio.run(send(port, request_bytes(asking(NAME, "ba", 1), secrets["all"])))
        for name in options.only:
            told[name] = asyncio.run(PARTS[name](server, secrets, options))
            show(name, told[name])
    (options.out / "load.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return told


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of the crowd")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000, help="while memory is watched")
    parser.add_argument("--warm-up", type=int, default=3_000, help="requests before that")
    parser.add_argument("--asked", type=int, default=200, help="short requests of each latency")
    parser.add_argument("--shape", default=json.dumps(SHAPE), help="JSON, sizes of the model")
    parser.add_argument("--threads", default="1", help="of the server's arithmetic")
    return parser.parse_args(arguments)


def asking(model: str, prompt: str, most: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": most, "temperature": 0}


def texts(seed: int) -> Any:
    return itertools.cycle(language(seed, 200, words=30))


async def ask(port: int, secrets: dict[str, str], key: str, body: Any) -> Reply:
    return await send(port, request_bytes(body, secrets[key]))


# The crowd.


async def crowd(server: Running, secrets: dict[str, str], options: Any) -> dict[str, Any]:
    questions = [
        Question(one.key, one.body, (await ask(server.port, secrets, one.key, one.body)).text)
        for one in make_questions()
    ]
    found, begun = Crowd(), time.monotonic()
    until = begun + options.seconds
    clients = [
        client(number, server.port, secrets, questions, found, until)
        for number in range(options.clients)
    ]
    before = server.facts()
    await asyncio.gather(*clients)
    seconds = time.monotonic() - begun
    # Who hung up is found out about, and what ran for them ends.
    await asyncio.sleep(2)
    again = [(await ask(server.port, secrets, one.key, one.body)).text for one in questions[:5]]
    if again != [one.answer for one in questions[:5]]:
        found.odd.append("afterwards the answers are others")
    return {
        "clients": options.clients,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(found.statuses.items())),
        "answers_a_second": round(found.compared / seconds, 1),
        "tokens_a_second": round(found.tokens / seconds, 1),
        "compared": found.compared,
        "odd": found.odd[:20],
        "odd_count": len(found.odd),
        "before": before,
        "after": server.facts(),
    }


def make_questions() -> list[Question]:
    dice, prompts = random.Random(0), texts(5)
    found = []
    for _ in range(QUESTIONS):
        key = dice.choice(["all", "half"])
        prompt = next(prompts)[: dice.choice([20, 60, 120])]
        if dice.random() < 0.1:
            prompt = " ".join(next(prompts) for _ in range(5))
        body = asking(dice.choice(MODELS[key]), prompt, dice.choice([4, 16, 32]))
        found.append(Question(key, body))
    return found


async def client(
    number: int, port: int, secrets: Any, questions: list[Question], found: Crowd, until: float
) -> None:
    dice = random.Random(number)
    await asyncio.sleep(dice.random())
    while time.monotonic() < until:
        kind = dice.choices(["whole", "stream", "leave", "slow", "garbage"], [45, 35, 8, 7, 5])[0]
        try:
            async with asyncio.timeout(120):
                wait = await ask_once(kind, dice, port, secrets, dice.choice(questions), found)
        except Exception as error:
            found.odd.append(f"{kind}: {error!r}"[:300])
            wait = 1.0
        await asyncio.sleep(wait)


async def ask_once(
    kind: str, dice: random.Random, port: int, secrets: Any, one: Question, found: Crowd
) -> float:
    """One request of a kind; returns for how long the client was told to wait."""
    if kind == "garbage":
        reply = await send(port, dice.choice(GARBAGE))
        found.statuses[f"garbage {reply.status}"] += 1
        if not 400 <= reply.status < 500 and reply.status:
            found.odd.append(f"garbage got {reply.status}")
        return 0.0
    data = request_bytes(one.body | {"stream": kind != "whole"}, secrets[one.key])
    how = {"slow": {"pause": 0.05}, "leave": {"most": 400}}.get(kind, {})
    reply = await send(port, data, **how)
    found.statuses[f"{kind} {reply.status}"] += 1
    if reply.status == 429:
        return min(reply.retry_seconds, BACK_OFF_MAX_SECONDS)
    if reply.status != 200:
        found.odd.append(f"{kind}: {reply.status} {reply.body[:200]!r}")
    elif kind != "leave":
        found.compared += 1
        found.tokens += one.body["max_tokens"]
        if reply.text != one.answer:
            found.odd.append(f"another answer than alone: {one.body}")
    return 0.0


# Memory.


async def memory(server: Running, secrets: dict[str, str], options: Any) -> dict[str, Any]:
    counter = itertools.count()
    samples: list[dict[str, float]] = []
    total = options.warm_up + options.requests
    step = max(1, options.requests // 40)

    async def one(dice: random.Random) -> None:
        prompts = texts(dice.randrange(10**6))
        while (number := next(counter)) < total:
            # Each prompt is new, so the cache of beginnings is always full.
            prompt = f"{number} {next(prompts)[:80]}"
            model = dice.choice(MODELS["all"])
            body = asking(model, prompt, dice.randrange(1, 5)) | {"stream": dice.random() < 0.5}
            reply = await ask(server.port, secrets, "all", body)
            assert reply.status == 200, reply
            if number >= options.warm_up and number % step == 0:
                samples.append({"request": number, **server.facts()})

    begun = time.monotonic()
    await asyncio.gather(*(one(random.Random(n)) for n in range(16)))
    seconds = time.monotonic() - begun
    slopes = {
        name: 1000 * slope([s["request"] for s in samples], [s[name] for s in samples])
        for name in ("rss_kib", "threads", "files")
    }
    flat = slopes["rss_kib"] < FLAT_KIB
    flat &= all(
        abs(samples[-1][name] - samples[0][name]) <= FLAT_HANDLES for name in ("threads", "files")
    )
    return {
        "requests": options.requests,
        "warm_up": options.warm_up,
        "requests_a_second": round(total / seconds, 1),
        "first": samples[0],
        "last": samples[-1],
        "gained_in_1000_requests": {name: round(value, 3) for name, value in slopes.items()},
        "flat": bool(flat),
        "samples": samples,
    }


def slope(x: list[float], y: list[float]) -> float:
    return statistics.linear_regression(x, y).slope if len(set(x)) > 1 else 0.0


# Latency.


async def latency(server: Running, secrets: dict[str, str], options: Any) -> dict[str, Any]:
    prompts = texts(9)
    long_prompt = (" ".join(next(prompts) for _ in range(40)))[:680]
    short = asking(NAME, next(prompts)[:30], 16)
    found = {"alone": await timed(server, secrets, "short", short, options.asked)}
    length = int(json.loads(options.shape)["max_position_embeddings"])
    long = asking(NAME, long_prompt, length // 4)
    tokens = await count_tokens(server, secrets, long)
    cases = {
        "beside 8 long": ("long", long, 8, "short"),
        "beside a tenant with 100": ("greedy", short, 100, "short"),
        "as one of that tenant's": ("greedy", short, 100, "greedy"),
    }
    for name, (key, body, count, mine) in cases.items():
        crowd = [asyncio.ensure_future(forever(server, secrets, key, body)) for _ in range(count)]
        await asyncio.sleep(2)
        found[name] = await timed(server, secrets, mine, short, options.asked)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await asyncio.sleep(2)
    return {"long_prompt_tokens": tokens, "long_answer_tokens": length // 4, **found}


async def count_tokens(server: Running, secrets: Any, body: Any) -> int:
    reply = await ask(server.port, secrets, "long", body | {"max_tokens": 1})
    return int(json.loads(reply.body)["usage"]["prompt_tokens"])


async def forever(server: Running, secrets: Any, key: str, body: Any) -> None:
    while True:
        with suppress(ConnectionError):
            reply = await ask(server.port, secrets, key, body)
            if reply.status == 429:
                await asyncio.sleep(min(reply.retry_seconds, 1.0))


async def timed(server: Running, secrets: Any, key: str, body: Any, count: int) -> dict[str, Any]:
    """Seconds of so many requests, one after another; who is refused comes again at once."""
    seconds: list[float] = []
    refused = 0
    while len(seconds) < count and refused < 10 * count:
        begun = time.monotonic()
        reply = await ask(server.port, secrets, key, body)
        if reply.status == 429:
            refused += 1
            await asyncio.sleep(0.05)
            continue
        assert reply.status == 200, reply
        seconds.append(time.monotonic() - begun)
    told: dict[str, Any] = {"answers": len(seconds), "refused": refused}
    if len(seconds) > 1:
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        told |= {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}
    return told


PARTS = {"crowd": crowd, "memory": memory, "latency": latency}


def show(name: str, told: dict[str, Any]) -> None:
    print(f"== {name}")
    for what, value in told.items():
        if what != "samples":
            print(f"  {what:24} {value}")


if __name__ == "__main__":
    main()

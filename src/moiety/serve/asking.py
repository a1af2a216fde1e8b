"""From a body to jobs: everything that can be wrong with a request is found before any work."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from moiety.errors import ConfigError, StateError
from moiety.serve.bodies import Form
from moiety.serve.choices import Choice
from moiety.serve.house import House
from moiety.serve.jobs import Engine, Job, Overloaded, Stream
from moiety.serve.limits import Grant
from moiety.serve.policy import Rights
from moiety.serve.refusals import RefusalError, bad_request, too_busy
from moiety.serve.requests import MAX_CHOICES, Asked, ChatRequest, CompletionRequest
from moiety.serve.running import Run
from moiety.serve.served import Chosen
from moiety.serve.texts import too_long

USUAL_TOKENS = 16
"""What a completion gets that does not say; OpenAI's number."""

COLDEST = 1e-5
"""Below it temperature is zero: the likeliest token, without dividing by nothing."""

_SEEDS = 2**63


@dataclass(frozen=True)
class Prompt:
    """One prompt as tokens, and how many may follow."""

    ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Begun:
    """A request that was let in and is running. ``echoes`` are prompts to be told back."""

    run: Run
    form: Form
    echoes: Sequence[str]


async def begin(house: House, key_hash: str | None, asked: Asked, grant: Grant) -> Begun:
    """Checks a request that has its place, and submits its jobs. The caller finishes the run.

    Raises:
        RefusalError: whatever is wrong, before any work was done.
    """
    engine = house.ready_engine()
    house.served.choose(house.rights(key_hash), asked.model, asked.extension)
    _check_number(asked, min(MAX_CHOICES, engine.most_jobs))
    prompts = await house.work(partial(_prompts, house, asked, engine.max_context))
    # Again, and no pause until the jobs are submitted: an expert may have left, a policy changed.
    engine, rights = house.ready_engine(), house.rights(key_hash)
    chosen = house.served.choose(rights, asked.model, asked.extension)
    # A prompt is computed for each of its choices.
    tokens = sum(len(one.ids) + one.max_tokens for one in prompts) * asked.n
    house.limits.take(grant, rights, tokens)
    streams = _submit(engine, _jobs(house, rights, asked, chosen, prompts))
    return _begun(house, rights, asked, chosen, prompts, streams, grant)


def _check_number(asked: Asked, most: int) -> None:
    prompts = len(asked.prompts) if isinstance(asked, CompletionRequest) else 1
    if prompts * asked.n > most:
        told = f"prompts times n is {prompts * asked.n}, and this server takes {most} at once"
        raise bad_request(told, "n" if asked.n > 1 else "prompt")


def _prompts(house: House, asked: Asked, limit: int) -> list[Prompt]:
    """Every prompt as tokens. Runs in a thread: a long text takes a while."""
    texts = house.texts
    if isinstance(asked, ChatRequest):
        messages = [{"role": one.role, "content": one.text} for one in asked.messages]
        ids = texts.encode_chat(messages, limit)
        most = asked.max_completion_tokens or asked.max_tokens
        return [Prompt(tuple(ids), _room(ids, most, limit, limit, "messages"))]
    assert isinstance(asked, CompletionRequest)
    found = []
    for one in asked.prompts:
        ids = texts.encode(one, limit, "prompt") if isinstance(one, str) else _own_ids(house, one)
        room = _room(ids, asked.max_tokens, USUAL_TOKENS, limit, "prompt")
        found.append(Prompt(tuple(ids), room))
    return found


def _own_ids(house: House, ids: list[int]) -> list[int]:
    """Token ids as they were sent, the separator first, and nowhere else."""
    separator = house.texts.separator
    rest = ids[1:] if ids[0] == separator else ids
    if max(ids) >= house.served.vocab:
        raise bad_request(f"prompt: no token {max(ids)} in this vocabulary", "prompt")
    if separator in rest:
        raise bad_request(f"prompt: token {separator} only begins a text", "prompt")
    return [separator, *rest]


def _room(ids: Sequence[int], asked: int | None, usual: int, limit: int, param: str) -> int:
    """How many tokens may follow a prompt: what was asked for, or the usual number, if it fits."""
    room = limit - len(ids)
    least = 1 if asked is None else asked
    if room < least:
        raise too_long(len(ids) + least, limit, "max_tokens" if room > 0 else param)
    return min(usual, room) if asked is None else asked


def _jobs(
    house: House, rights: Rights, asked: Asked, chosen: Chosen, prompts: Sequence[Prompt]
) -> list[Job]:
    first = Job(
        prompt=(),
        slots=chosen.slots,
        tenant=rights.id,
        max_tokens=0,
        temperature=asked.temperature if asked.temperature >= COLDEST else 0.0,
        top_p=asked.top_p,
        seed=None,
        stop_tokens=house.texts.stop_tokens,
        top_logprobs=_logprobs(asked) or 0,
        prompt_logprobs=_scores_prompt(asked),
    )
    return [
        replace(
            first,
            prompt=one.ids,
            max_tokens=one.max_tokens,
            seed=None if asked.seed is None else (asked.seed + number) % _SEEDS,
        )
        for one in prompts
        for number in range(asked.n)
    ]


def _scores_prompt(asked: Asked) -> bool:
    return isinstance(asked, CompletionRequest) and asked.echo and asked.logprobs is not None


def _submit(engine: Engine, jobs: Sequence[Job]) -> list[Stream]:
    """All jobs, or none of them."""
    streams: list[Stream] = []
    try:
        for job in jobs:
            streams.append(engine.submit(job))  # noqa: PERF401, each that was taken is undone below
    except BaseException as error:
        for stream in streams:
            stream.cancel()
        if isinstance(error, Overloaded):
            raise too_busy(error.message, error.retry_seconds, "overloaded") from None
        if isinstance(error, ConfigError | StateError):
            # All that a request can do wrong was looked at before: it is the engine that cannot.
            raise RefusalError(503, error.message, code="not_ready") from None
        raise
    return streams


def _begun(
    house: House,
    rights: Rights,
    asked: Asked,
    chosen: Chosen,
    prompts: Sequence[Prompt],
    streams: Sequence[Stream],
    grant: Grant,
) -> Begun:
    chat = isinstance(asked, ChatRequest)
    wanted = [one for one in prompts for _ in range(asked.n)]
    choices = [
        Choice(index, house.texts, asked.stops, len(chosen.slots)) for index in range(len(wanted))
    ]
    prompt_tokens = sum(len(one.ids) for one in prompts)
    # A prompt is billed once, and counts in its key's minute as often as it is computed.
    grant.tokens -= prompt_tokens * (asked.n - 1)
    release = partial(house.limits.end, grant)
    run = Run(rights, chosen, prompt_tokens, choices, streams, release)
    house.runs.add(run)
    form = Form(
        texts=house.texts,
        id=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(16)}",
        model=asked.model,
        created=int(time.time()),
        chat=chat,
        logprobs=_logprobs(asked),
        routing=asked.extension.routing,
        digest=chosen.digest,
    )
    echoes = []
    if isinstance(asked, CompletionRequest) and asked.echo and not _scores_prompt(asked):
        texts = [house.texts.decode(one.ids[1:]) for one in prompts]
        echoes = [text for text in texts for _ in range(asked.n)]
    return Begun(run, form, echoes)


def _logprobs(asked: Asked) -> int | None:
    if isinstance(asked, ChatRequest):
        return (asked.top_logprobs or 0) if asked.logprobs else None
    assert isinstance(asked, CompletionRequest)
    return asked.logprobs

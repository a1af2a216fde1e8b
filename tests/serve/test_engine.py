"""The engine's promises beside equality: who is refused, who is freed, what never shows."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from dataclasses import replace

import pytest
import torch
from tests import tiny
from tests.laws.test_law_02_masks import poison
from tests.serve.asking import OWNERS, answers, ask, engine, greedy_alone, read, text, tokens

from moiety.errors import ConfigError, StateError
from moiety.serve.decoder import shares_of
from moiety.serve.engine import Limits, LocalEngine
from moiety.serve.jobs import Ending, Overloaded

PROMPT = tuple(range(2, 42))
LONG = {"max_tokens": 80, "stop_tokens": frozenset()}


@pytest.fixture(scope="module")
def oracle(tiny_world):
    return tiny_world.load(*OWNERS)


@pytest.fixture(scope="module")
def prompts(oracle):
    return [tuple(oracle.tokenizer(words)["input_ids"]) for words in tiny.PROMPTS]


def written(running) -> int:
    """How many positions of keys hold anything at all."""
    return int(running._stepper._places.keys_LPHCW.count_nonzero())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (0, 320)}, "vocabulary"),
        ({"prompt": (-1,)}, "vocabulary"),
        ({"prompt": (2,) * 120, "max_tokens": 9}, "more than"),
        ({"slots": (1, 2)}, "slots"),
        ({"slots": (0, 2, 1)}, "slots"),
        ({"slots": (0, 0, 1)}, "slots"),
        ({"slots": (0, 4)}, "slots"),
        ({"slots": ()}, "slots"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": -1}, "max tokens"),
        ({"top_logprobs": 21}, "top logprobs"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_any_work(tiny_world, changes, words):
    with engine(tiny_world.load(*OWNERS)) as running:
        with pytest.raises(ConfigError, match=words):
            running.submit(replace(ask((0,)), **changes))
        assert running.load().waiting == running.load().running == 0
        whole = ask((2,) * 120, max_tokens=8, stop_tokens=frozenset())
        assert len(answers(running, [whole])[0][0]) == 8


def test_a_full_queue_is_overload_with_a_hint_and_ends(tiny_world, prompts):
    async def story(running):
        streams, refused = [], None
        for _ in range(20):
            try:
                streams.append(running.submit(ask(prompts[0], **LONG)))
            except Overloaded as error:
                refused = error
        assert refused is not None
        assert 1 <= refused.retry_seconds <= 60
        found = await asyncio.gather(*(read(stream) for stream in streams))
        assert {ending.reason for _, ending in found} == {"length"}
        assert 5 <= len(streams) < 20
        assert (await read(running.submit(ask(prompts[0]))))[1].reason in ("stop", "length")

    with engine(tiny_world.load(*OWNERS), places=2, waiting=3) as running:
        asyncio.run(story(running))


def test_who_hangs_up_frees_the_place_and_leaves_nothing(tiny_world, prompts):
    async def story(running):
        one, two = (running.submit(ask(prompts[n], **LONG)) for n in range(2))
        async for _ in one:
            one.cancel()
            break
        rest = await read(one)
        assert rest[1] == Ending("cancelled")
        assert len(rest[0]) < LONG["max_tokens"] - 2
        second = await read(two)
        assert second[1].reason == "length"
        queued = running.submit(ask(prompts[0], **LONG))
        queued.cancel()
        assert (await read(queued))[1].reason in ("cancelled", "length")
        queued.cancel()  # late: nothing happens
        return second

    with engine(tiny_world.load(*OWNERS), places=1) as running:
        found = asyncio.run(story(running))
        assert tokens(found) == tokens(answers(running, [ask(prompts[1], **LONG)])[0])
        assert running.load().running == 0
        assert written(running) == 0


def test_a_cached_beginning_gives_the_cold_answer_and_saves_its_work(tiny_world):
    jobs = [ask(PROMPT, prompt_logprobs=told, top_logprobs=2) for told in (False, True)]
    with engine(tiny_world.load(*OWNERS), cache_bytes=0) as running:
        cold = answers(running, jobs[:1])[0]
    with engine(tiny_world.load(*OWNERS)) as running:
        first = answers(running, jobs[:1])[0]
        assert running.load().cached_tokens >= 32
        fed = []
        inner = running._stepper._decoder.run
        running._stepper._decoder.run = lambda t, *rest: fed.append(len(t)) or inner(t, *rest)
        second = answers(running, jobs[:1])[0]
        assert fed[0] == len(PROMPT) - 32
        # Who wants every prompt token's logprob gets them all computed.
        fed.clear()
        whole = answers(running, jobs[1:])[0]
        assert fed[0] == len(PROMPT)
    for found in (first, second, whole):
        assert tokens(found) == tokens(cold)
        for ours, theirs in zip(found[0][-8:], cold[0][-8:], strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert sum(step.prompt for step in whole[0]) == len(PROMPT) - 1


def test_an_answer_is_a_beginning_of_what_is_asked_next(tiny_world):
    with engine(tiny_world.load(*OWNERS)) as running:
        first = answers(running, [ask(PROMPT, **LONG)])[0]
        fed = []
        inner = running._stepper._decoder.run
        running._stepper._decoder.run = lambda t, *rest: fed.append(len(t)) or inner(t, *rest)
        longer = (*PROMPT, *tokens(first)[:40])
        again = answers(running, [ask(longer, max_tokens=8, stop_tokens=frozenset())])[0]
    assert fed[0] == len(longer) - (len(longer) - 1) // 16 * 16
    assert tokens(again) == tokens(first)[40:48]


def test_beginnings_are_not_shared_between_tenants_or_slots(tiny_world):
    jobs = [ask(PROMPT, tenant=tenant, slots=slots) for tenant in "ab" for slots in [(0, 1), (0,)]]
    with engine(tiny_world.load(*OWNERS)) as running:
        for job in jobs:
            fed = []
            inner = type(running._stepper._decoder).run.__get__(running._stepper._decoder)
            running._stepper._decoder.run = lambda t, *rest, i=inner, f=fed: (
                f.append(len(t)) or i(t, *rest)
            )
            answers(running, [job])
            assert fed[0] == len(PROMPT)


@pytest.mark.parametrize("top_k", [None, 1])
def test_numbers_of_a_forbidden_expert_never_show_and_its_own_requests_fail(
    tiny_world, oracle, prompts, top_k
):
    oracle = tiny_world.load(*OWNERS, top_k=top_k)
    bad = tiny_world.load(*OWNERS, top_k=top_k)
    poison(bad, {"cat"})
    sets = [(0, 1), (0, 3), (0, 1, 2), (0, 1, 2, 3), (0,), (0, 2)]
    jobs = [ask(prompts[n % 3], slots=sets[n % 6]) for n in range(18)]
    with engine(bad, places=4, step_tokens=9) as running:
        for _ in range(2):
            for job, found in zip(jobs, answers(running, jobs), strict=True):
                if 3 in job.slots:
                    assert found[1].reason == "failed"
                    assert found[0] == []
                else:
                    assert text(oracle, found) == greedy_alone(oracle, job)


def test_a_removed_expert_is_gone(tiny_world, oracle, prompts):
    async def story(running):
        going, waiting = (running.submit(ask(prompts[0], **LONG)) for _ in range(2))
        reader = asyncio.create_task(read(going))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        await asyncio.to_thread(running.remove, [2])
        assert time.monotonic() - begun < 5
        for found in (await reader, await read(waiting)):
            assert found[1].reason == "withdrawn"
            assert "withdrawn" in found[1].words

    with engine(tiny_world.load(*OWNERS), places=1) as running:
        decoder = running._stepper._decoder
        weights = [weakref.ref(block.experts[2]) for block in decoder._blocks]
        answers(running, [ask(PROMPT, slots=(0, 1, 2)), ask(PROMPT, slots=(0, 1))])
        asyncio.run(story(running))
        gc.collect()
        assert [one() for one in weights] == [None] * tiny.LAYERS
        assert not running._stepper._routing.table_SV[2].any()
        assert {key[1] for key in running._stepper._prefixes._roots} == {(0, 1)}
        assert written(running) == 0
        with pytest.raises(ConfigError, match="withdrawn: bob"):
            running.submit(ask(prompts[0]))
        with pytest.raises(ConfigError, match="not the anchor"):
            running.remove([0])
        job = ask(prompts[0], slots=(0, 1, 3))
        assert text(oracle, answers(running, [job])[0]) == greedy_alone(oracle, job)
        shares = shares_of(torch.tensor([[0.5, 0.0, 0.5, 0.0]]))
        with pytest.raises(StateError, match="removed"):
            decoder._blocks[0].mixed(torch.zeros(1, tiny.WIDTH), shares)
        running.remove([2])  # again: nothing happens
    running.remove([3])  # after the end: still gone
    assert decoder._blocks[0].experts[3] is None


def test_a_failing_step_ends_its_requests_and_not_the_engine(tiny_world, oracle, prompts, caplog):
    with engine(tiny_world.load(*OWNERS), places=2) as running:
        decoder, calls = running._stepper._decoder, []
        inner = decoder.run

        def fails(*args):
            calls.append(args)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return inner(*args)

        decoder.run = fails
        jobs = [ask(prompts[n % 3]) for n in range(5)]
        found = answers(running, jobs)
        reasons = [ending.reason for _, ending in found]
        assert 1 <= reasons.count("failed") <= 2
        assert "out of memory" not in str(found)
        assert "out of memory" in caplog.text
        for job, one in zip(jobs, found, strict=True):
            if one[1].reason != "failed":
                assert text(oracle, one) == greedy_alone(oracle, job)
        assert written(running) == 0


def test_an_engine_that_cannot_go_on_says_so_to_everybody(tiny_world, prompts, caplog):
    running = LocalEngine(tiny_world.load(*OWNERS), Limits(places=1))

    def dies(*_):
        raise RuntimeError("not expected by anybody")

    running._stepper._decoder.run = running._stepper._places.clear = dies
    found = answers(running, [ask(prompts[0])] * 2)
    assert [ending.reason for _, ending in found] == ["failed", "failed"]
    assert "the engine has died" in caplog.text
    with pytest.raises(StateError, match="died"):
        running.submit(ask(prompts[0]))
    running.remove([1])
    running.close()


def test_closing_ends_everything(tiny_world, prompts):
    async def story(running):
        streams = [running.submit(ask(prompts[0], **LONG)) for _ in range(3)]
        await asyncio.to_thread(running.close)
        found = await asyncio.gather(*(read(stream) for stream in streams))
        assert {ending.reason for _, ending in found} <= {"failed", "length"}
        assert "failed" in {ending.reason for _, ending in found}

    running = LocalEngine(tiny_world.load(*OWNERS), Limits(places=1))
    asyncio.run(story(running))
    with pytest.raises(StateError, match="closed"):
        running.submit(ask(prompts[0]))
    running.close()


def test_a_prompt_alone_can_be_scored(tiny_world):
    job = ask(PROMPT, max_tokens=0, prompt_logprobs=True)
    with engine(tiny_world.load(*OWNERS), step_tokens=9) as running:
        steps, ending = answers(running, [job])[0]
        assert answers(running, [ask((5,), max_tokens=0)])[0] == ([], Ending("length"))
    assert ending == Ending("length")
    assert [step.token for step in steps] == list(PROMPT[1:])


def test_many_requests_leave_nothing_behind(tiny_world, prompts):
    count = 0
    with engine(tiny_world.load(*OWNERS), places=4, cache_bytes=30_000) as running:
        bound = 30_000 // running._stepper._places.position_bytes
        for turn in range(4):
            jobs = [
                ask((*prompts[0], turn, n, *PROMPT), tenant=str(n), max_tokens=4) for n in range(16)
            ]
            count += sum(len(steps) for steps, _ in answers(running, jobs))
            assert running.load().cached_tokens <= bound
        load = running.load()
        assert (load.running, load.waiting, load.capacity) == (0, 0, 4)
        assert load.generated_tokens == count
        assert written(running) == 0


def test_the_mixture_is_taken_over(tiny_world):
    mixture = tiny_world.load(*OWNERS)
    with engine(mixture), pytest.raises(AttributeError, match="layers"):
        mixture.generate("ba", max_new_tokens=1)
    with pytest.raises(ConfigError, match="place"):
        LocalEngine(tiny_world.load(), Limits(places=0))

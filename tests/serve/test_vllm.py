"""vLLM behind our contract: equal to ``local``, each mask kept, and nothing left behind."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.house.source import ROOT
from tests.serve import vllms
from tests.serve.asking import OWNERS, answers, ask, engine, read, tokens
from tests.serve.conftest import settled
from transformers import FlexOlmoForCausalLM

from moiety.errors import ConfigError, StateError
from moiety.merge import exporting, load_release
from moiety.serve.process import Process, Start

pytestmark = [vllms.needs_vllm, pytest.mark.filterwarnings("default")]

SETS = [(0,), (0, 1), (0, 2, 3), (0, 1, 2, 3)]
WORDS = [*tiny.PROMPTS, "no ri te ka ba"]
MANY = {"max_tokens": 24}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return vllms.make_world(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def release(world) -> Path:
    return world.release(*OWNERS)


@pytest.fixture(scope="module")
def running(release):
    found = vllms.start(release)
    yield found
    found.close()


@pytest.fixture(scope="module")
def oracle(release):
    return load_release(release)


@pytest.fixture(scope="module")
def prompts(oracle):
    return [tuple(oracle.tokenizer(words)["input_ids"]) for words in WORDS]


def assert_equal(theirs, ours):
    """Tokens, endings and weights exactly; logprobs as far as float32 goes."""
    assert tokens(theirs) == tokens(ours)
    assert theirs[1] == ours[1]
    assert len(theirs[0]) == len(ours[0])
    for one, other in zip(theirs[0], ours[0], strict=True):
        assert (one.token, one.prompt, one.weights) == (other.token, other.prompt, other.weights)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-4)


def test_every_mask_in_one_batch_equals_local(running, release, prompts):
    jobs = [
        ask(prompt, slots=slots, top_logprobs=top, prompt_logprobs=top > 0, **MANY)
        for prompt in prompts
        for slots, top in zip(SETS, (0, 3, 0, 1), strict=True)
    ]
    with engine(load_release(release)) as local:
        ours = answers(local, jobs)
    for theirs, mine in zip(answers(running, jobs), ours, strict=True):
        assert_equal(theirs, mine)


@pytest.mark.parametrize("names", [[], ["bob"], ["amy", "cat"]])
def test_a_mask_equals_the_export_of_the_subset(running, release, prompts, tmp_path, names):
    exporting.export_plain(release, tmp_path / "subset", experts=names)
    subset = FlexOlmoForCausalLM.from_pretrained(tmp_path / "subset").eval()
    slots = (0, *(running.names.index(name) for name in names))
    for prompt in prompts:
        (found,) = answers(running, [ask(prompt, slots=slots, **MANY)])
        with torch.inference_mode():
            whole = subset.generate(
                torch.tensor([prompt]),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=0,
                pad_token_id=1,
            )
        told = whole[0, len(prompt) :].tolist()
        assert tokens(found) == [token for token in told if token != 0]


def test_beginnings_are_not_shared_between_masks_or_tenants(running, release):
    prompt = (0, *(2 + n % 300 for n in range(300)))
    jobs = [
        ask(prompt, slots=slots, tenant=tenant, **MANY)
        for slots in [(0, 1, 2, 3), (0,), (0, 2)]
        for tenant in "ab"
    ]
    with engine(load_release(release), cache_bytes=0) as local:
        ours = [answers(local, [job])[0] for job in jobs]
    assert len({tuple(tokens(found)) for found in ours}) == 3
    for job, mine in zip(jobs * 2, ours * 2, strict=True):
        assert_equal(answers(running, [job])[0], mine)


def test_what_is_refused_never_reaches_it_and_others_are_answered(running, prompts):
    good = ask(prompts[0], **MANY)
    before = answers(running, [good])[0]
    bad = [{"slots": (0, 9)}, {"prompt": (0, 4000)}, {"prompt": (-1,)}, {"top_logprobs": 21}]
    bad += [{"temperature": math.nan}, {"top_p": 0.0}, {"max_tokens": 4000}]
    for changes in bad:
        with pytest.raises(ConfigError):
            running.submit(replace(good, **changes))
    assert tokens(answers(running, [good])[0]) == tokens(before)


def test_a_seed_gives_the_same_text_and_another_seed_another(running, prompts):
    warm = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 24, "stop_tokens": frozenset()}
    jobs = [ask(prompts[0], seed=seed, **warm) for seed in (-1, 7, 8)]
    first, second = answers(running, jobs), [answers(running, [job])[0] for job in jobs]
    assert [tokens(one) for one in first] == [tokens(one) for one in second]
    assert len({tuple(tokens(one)) for one in first}) == 3
    cold = answers(running, [ask(prompts[0], temperature=1e-3, **MANY)])[0]
    assert tokens(cold) == tokens(answers(running, [ask(prompts[0], **MANY)])[0])


def test_a_prompt_is_scored_also_where_it_fills_the_context(running, release, prompts):
    full = (0, *(2 + n % 300 for n in range(511)))
    jobs = [
        ask(prompt, max_tokens=0, prompt_logprobs=scored, top_logprobs=2)
        for prompt in (prompts[2], full)
        for scored in (True, False)
    ]
    with engine(load_release(release)) as local:
        ours = answers(local, jobs)
    for theirs, mine in zip(answers(running, jobs), ours, strict=True):
        assert_equal(theirs, mine)
    assert len(ours[2][0]) == 511


def test_who_hangs_up_frees_the_place(running, prompts):
    async def story():
        stream = running.submit(ask(prompts[0], max_tokens=400, stop_tokens=frozenset()))
        async for _ in stream:
            stream.cancel()
            break
        assert (await read(stream))[1].reason == "cancelled"

    asyncio.run(story())
    assert settled(lambda: running.load().running == 0)


def test_a_compiled_model_keeps_the_masks(world, prompts):
    chosen = world.release(*OWNERS, top_k=2)
    jobs = [ask(prompt, slots=slots, **MANY) for prompt in prompts for slots in SETS]
    with engine(load_release(chosen)) as local:
        ours = answers(local, jobs)
    compiled = vllms.start(chosen, vllms.EAGER.model_copy(update={"enforce_eager": False}))
    try:
        for theirs, mine in zip(answers(compiled, jobs), ours, strict=True):
            assert_equal(theirs, mine)
    finally:
        compiled.close()


def test_a_forbidden_expert_is_never_multiplied_with(release, tmp_path):
    """No number of it shows, not even times nought: its weights are none, and others answer."""
    exporting.export_plain(release, tmp_path / "model")
    (shard,) = (tmp_path / "model").glob("*cat*.safetensors")
    held = load_file(shard)
    save_file({name: torch.full_like(one, torch.nan) for name, one in held.items()}, shard)
    rows, heard = [], threading.Event()

    def hear(message):
        if message is not None and message["is"] == "steps":
            rows.extend(message["rows"])
            if sum(row[2] is not None for row in rows) == 2:
                heard.set()

    args = vllms.EAGER.args(511)
    worker = Process(Start(vllms.PYTHON, tmp_path / "model", 4, args, tmp_path), hear)
    try:
        worker.open()
        job = {"do": "run", "prompt": [0, 5, 6], "salt": "", "max_tokens": 8, "temperature": 0.0}
        job |= {"top_p": 1.0, "seed": None, "stop": [], "top": 0, "scored": False}
        worker.send(job | {"id": 1, "slots": [0, 1, 2]})
        worker.send(job | {"id": 2, "slots": [0, 3]})
        assert heard.wait(60)
    finally:
        worker.end()
    made = {number: sum(len(row[1]) for row in rows if row[0] == number) for number in (1, 2)}
    reasons = {row[0]: row[2] for row in rows if row[2] is not None}
    assert made == {1: 8, 2: 0}
    assert reasons == {1: "length", 2: "failed"}


def test_a_shape_that_it_does_not_compute_with_is_named(tmp_path):
    odd = tiny.make_world(tmp_path, {"amy": None}, **vllms.SHAPE | {"hidden_size": 192})
    with pytest.raises(StateError, match="heads of 48 and, with evidence") as caught:
        vllms.start(odd.release("amy"))
    assert "--engine local" in caught.value.remedy


@pytest.fixture
def own(release):
    """An engine that a test may break."""
    found = vllms.start(release)
    yield found
    found.close()


def test_a_withdrawal_under_load_loses_nothing_else(own, release, prompts):
    long = {"max_tokens": 300, "stop_tokens": frozenset({0})}
    jobs = [ask(prompts[n % 4], slots=SETS[n % 4], **long) for n in range(16)]
    with engine(load_release(release)) as local:
        alone = answers(local, jobs)
    ours = {job: tokens(found) for job, found in zip(jobs, alone, strict=True)}

    async def story():
        streams = [own.submit(job) for job in jobs]
        readers = [asyncio.create_task(read(stream)) for stream in streams]
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        await asyncio.to_thread(own.remove, [2])
        assert time.monotonic() - begun < 1
        with pytest.raises(ConfigError, match="withdrawn: bob"):
            own.submit(jobs[2])
        late = [job for job in jobs if 2 not in job.slots]
        readers += [asyncio.create_task(read(own.submit(job))) for job in late]
        for job, reader in zip([*jobs, *late], readers, strict=True):
            steps, ending = await reader
            if 2 in job.slots:
                assert ending.reason in ("withdrawn", "stop", "length")
            else:
                assert [step.token for step in steps] == ours[job]
            if ending.reason == "withdrawn":
                made = [step.token for step in steps]
                assert made == ours[job][: len(made)]

    old = own._state.current
    asyncio.run(story())
    assert settled(lambda: own._state.current is not old, 120)
    assert own._state.current.slots == (0, 1, 3)
    assert settled(lambda: not old.folder.exists(), 30)
    assert not list(own._state.current.folder.rglob("*bob*"))
    again = [ask(prompts[n], slots=slots, **long) for n in range(4) for slots in SETS[:2]]
    with engine(load_release(release)) as local:
        mine = answers(local, again)
    for theirs, one in zip(answers(own, again), mine, strict=True):
        assert_equal(theirs, one)


@pytest.mark.parametrize("whom", ["first", "last"])
def test_a_killed_process_is_told_and_replaced(own, prompts, whom):
    job = ask(prompts[2], max_tokens=400, stop_tokens=frozenset())
    top = own._state.current.process._popen.pid
    family = [top]
    for number, parent, _ in sorted(vllms.processes()):
        family += [number] if parent in family and number not in family else []
    assert len(family) >= 3

    async def story():
        reader = asyncio.create_task(read(own.submit(job)))
        await asyncio.sleep(0.2)
        os.kill(family[0 if whom == "first" else -1], signal.SIGKILL)
        steps, ending = await reader
        assert ending.reason == "failed"
        return [step.token for step in steps]

    begun = asyncio.run(story())
    assert settled(lambda: own.problem is None, 120)
    assert own._state.current.process._popen.pid != top
    assert not set(family) & {number for number, _, _ in vllms.processes()}
    again = answers(own, [replace(job, max_tokens=len(begun) + 1)])[0]
    assert tokens(again)[: len(begun)] == begun


def test_nothing_outlives_a_server_that_is_killed(release, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from tests.serve import vllms\n"
        f"engine = vllms.start(Path({str(release)!r}))\n"
        "print(engine._state.current.process._popen.pid, flush=True); time.sleep(600)"
    )
    told = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=told, stdout=subprocess.PIPE, text=True
    )
    with server:
        group = int(server.stdout.readline())
        server.kill()
    assert settled(lambda: not _alive(group), 20)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

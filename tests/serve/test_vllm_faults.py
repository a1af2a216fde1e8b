"""What becomes of requests when vLLM's process does what it should not, played by another."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.serve.asking import answers, ask, read, tokens
from tests.serve.conftest import settled

from moiety.errors import ConfigError, StateError
from moiety.serve import process, vllm
from moiety.serve.jobs import Ending, Overloaded
from moiety.serve.sizes import Sizes, read_sizes
from moiety.serve.vllm import VllmEngine

LONG = {"max_tokens": 80, "stop_tokens": frozenset()}
PROMPT = (0, 20, 21)


class Fake:
    """An interpreter that runs the fake, whatever it is told to run."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.python = folder / "python"
        fake = Path(__file__).with_name("fake_vllm.py")
        self.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake}"\n')
        self.python.chmod(0o755)
        self._seen = folder / "seen"
        self._patch = monkeypatch
        monkeypatch.setenv("FAKE_SEEN", str(self._seen))

    def engine(self, release: Path, mode: str, **sizes) -> closing[VllmEngine]:
        self._patch.setenv("FAKE", mode)
        return closing(VllmEngine(release, self.python, Sizes(**sizes)))

    @property
    def starts(self) -> list[list[str]]:
        """Process, number of experts and checkpoint of each start."""
        return [line.split() for line in self._seen.read_text().splitlines()]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Fake(tmp_path, monkeypatch)


def lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def test_another_version_is_refused_with_a_remedy(fake, release):
    with pytest.raises(ConfigError, match=r"0\.31\.0.*0\.32\.0") as caught:
        fake.engine(release, "old")
    assert "make vllm" in caught.value.remedy


def test_where_there_is_no_vllm_it_says_what_to_do(release, tmp_path):
    for python in (tmp_path / "none", Path(sys.executable)):
        with pytest.raises(ConfigError) as caught:
            VllmEngine(release, python)
        assert "make vllm" in caught.value.remedy


def test_one_that_never_comes_up_is_ended(fake, release, monkeypatch):
    monkeypatch.setattr(process, "START_SECONDS", 1.0)
    with pytest.raises(StateError, match="did not come up within 1 s"):
        fake.engine(release, "slow")
    ((pid, _, model),) = fake.starts
    assert not lives(pid)
    assert not Path(model).exists()


@pytest.mark.parametrize("mode", ["dies", "garbage"])
def test_jobs_of_a_process_that_ends_fail_with_words_and_a_new_one_comes(fake, release, mode):
    with fake.engine(release, mode) as running:
        bad, other = answers(running, [ask((0, 7), **LONG), ask(PROMPT, **LONG)], pauses=[0.1, 0.0])
        for found in (bad, other):
            assert found[1].reason == "failed"
            assert "vLLM has ended" in found[1].words
        assert other[0]
        if running.problem is not None:
            assert "started anew" in running.problem
            with pytest.raises(StateError, match="started anew"):
                running.submit(ask(PROMPT))
        assert settled(lambda: running.problem is None, 20)
        again = answers(running, [ask(PROMPT, max_tokens=3, stop_tokens=frozenset())])[0]
        assert tokens(again) == [22, 23, 24]
        assert len(fake.starts) == 2
        assert not lives(fake.starts[0][0])


def test_after_a_few_tries_somebody_must_look(fake, release, monkeypatch):
    monkeypatch.setattr(vllm, "PAUSE_SECONDS", 0.01)
    with fake.engine(release, "weak") as running:
        answers(running, [ask((0, 7), **LONG)])
        assert settled(lambda: "cannot be started" in (running.problem or ""), 30)
        assert "no memory left" in running.problem
        assert len(fake.starts) <= 2 + vllm.TRIES
        with pytest.raises(StateError, match="no memory left"):
            running.submit(ask(PROMPT))


def test_a_withdrawal_ends_who_uses_it_and_switches_over(fake, release):
    async def story(running):
        mine, other = (
            running.submit(ask(PROMPT, slots=slots, **LONG)) for slots in ((0, 2), (0, 1))
        )
        reader, rest = asyncio.create_task(read(mine)), asyncio.create_task(read(other))
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        await asyncio.to_thread(running.remove, [2])
        assert time.monotonic() - begun < 1
        assert (await reader)[1].reason == "withdrawn"
        with pytest.raises(ConfigError, match="withdrawn: bob"):
            running.submit(ask(PROMPT, slots=(0, 2)))
        between = running.submit(ask(PROMPT, slots=(0, 3), max_tokens=3))
        assert tokens(await read(between)) == [22, 23, 24]
        steps, ending = await rest
        assert ending == Ending("length")
        assert [step.token for step in steps] == [(22 + n) % 300 for n in range(80)]

    with fake.engine(release, "good") as running:
        asyncio.run(story(running))
        assert settled(lambda: len(fake.starts) == 2 and not lives(fake.starts[0][0]), 20)
        assert [int(experts) for _, experts, _ in fake.starts] == [4, 3]
        assert settled(lambda: not Path(fake.starts[0][2]).exists())
        found = answers(running, [ask(PROMPT, slots=(0, 1, 3), max_tokens=2)])[0]
        assert tokens(found) == [22, 23]
        assert len(found[0][0].weights) == 3
        last = fake.starts[1]
    assert not lives(last[0])
    assert not Path(last[2]).parents[1].exists()


def test_who_does_not_confirm_a_withdrawal_is_ended(fake, release, monkeypatch):
    monkeypatch.setattr(vllm, "WITHDRAW_SECONDS", 0.3)
    with fake.engine(release, "deaf") as running:
        running.remove([1])
        assert not lives(fake.starts[0][0])
        assert settled(lambda: running.problem is None and len(fake.starts) == 2, 20)
        assert fake.starts[1][1] == "3"


def test_who_hangs_up_frees_the_place_and_too_many_are_overload(fake, release, monkeypatch):
    async def story(running):
        assert running.most_jobs == 2 + 64
        streams = [running.submit(ask(PROMPT, **LONG)) for _ in range(running.most_jobs)]
        with pytest.raises(Overloaded) as caught:
            running.submit(ask(PROMPT))
        assert 1 <= caught.value.retry_seconds <= 60
        load = running.load()
        assert (load.running, load.waiting, load.capacity) == (2, 64, 2)
        streams[0].cancel()
        assert (await read(streams[0]))[1] == Ending("cancelled")
        streams[0].cancel()  # late: nothing happens
        assert settled(lambda: running.load().waiting == 63)
        last = running.submit(ask(PROMPT, **LONG))
        await asyncio.gather(*(read(stream) for stream in [*streams[1:], last]))
        assert running.load().running == 0

    with fake.engine(release, "good", max_num_seqs=2) as running:
        asyncio.run(story(running))


def test_who_comes_with_one_job_does_not_wait_for_another_s_many(fake, release):
    async def story(running):
        many = [running.submit(ask(PROMPT, tenant="many", **LONG)) for _ in range(6)]
        one = running.submit(ask(PROMPT, tenant="one", **LONG))
        assert len((await read(one))[0]) == 80
        assert running.load().waiting >= 3
        waiting = many[-1]
        waiting.cancel()
        assert await read(waiting) == ([], Ending("cancelled"))
        await asyncio.gather(*(read(stream) for stream in many[:-1]))

    with fake.engine(release, "good", max_num_seqs=1) as running:
        asyncio.run(story(running))


def test_what_cannot_be_answered_is_refused_before_any_work(fake, release):
    bad = [{"slots": (0, 4)}, {"slots": (1,)}, {"prompt": (320,)}, {"max_tokens": 200}]
    with fake.engine(release, "good") as running:
        for changes in bad:
            with pytest.raises(ConfigError):
                running.submit(replace(ask(PROMPT), **changes))
        assert running.load().running == 0
        for slots in ([0], [4]):
            with pytest.raises(ConfigError, match="not the anchor"):
                running.remove(slots)


def test_closing_ends_every_job(fake, release):
    async def story(running):
        stream = running.submit(ask(PROMPT, **LONG))
        await asyncio.to_thread(running.close)
        assert (await read(stream))[1].reason == "failed"

    with fake.engine(release, "good") as running:
        asyncio.run(story(running))
        with pytest.raises(StateError, match="closed"):
            running.submit(ask(PROMPT))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trust_remote_code = true", "trust_remote_code"),
        ("tensor_parallel_size = 0", "tensor_parallel_size"),
        ('dtype = "float16"', "dtype"),
        ("kv_cache_gib = nan", "kv_cache_gib"),
        ("= 1", "not TOML"),
    ],
)
def test_what_may_be_said_of_sizes_is_a_short_list(tmp_path, text, words):
    (tmp_path / "engine.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_sizes(tmp_path / "engine.toml")


def test_a_context_longer_than_the_model_s_is_refused(fake, release):
    with pytest.raises(ConfigError, match="max_model_len"):
        fake.engine(release, "good", max_model_len=4096)

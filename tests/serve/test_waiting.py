"""Tenants get their part of the places and of the waiting room, whoever asks for how much."""

from __future__ import annotations

import asyncio
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tests import tiny
from tests.serve.asking import OWNERS, ask, engine, greedy_alone, read, text

from moiety.serve.answers import Answer
from moiety.serve.waiting import WaitingRoom

TENANTS = "abcd"
CROWD = 40
EVENTS = some.lists(
    some.tuples(some.sampled_from(["come", "go", "end"]), some.sampled_from(TENANTS))
)


def entry(tenant: str) -> tuple:
    return ask([0], tenant=tenant), Answer(lambda _: None)


@given(EVENTS, some.integers(0, 6), some.integers(1, 3))
def test_turns_and_room_are_what_a_list_and_a_sort_say(events, size, places):
    room, kept, running, turns = WaitingRoom(size), [], Counter(), []
    for what, tenant in events:
        free = places - running.total()
        if what == "come":
            held = [job.tenant for job, _ in kept].count(tenant)
            others = {job.tenant for job, _ in kept} - {tenant}
            part = Fraction(size, len(others) + 1)
            fits = len(kept) < size + free or held + 1 <= part
            assert room.has_room(tenant, free) == fits
            if fits:
                kept.append(entry(tenant))
                room.add(*kept[-1])
        elif what == "go" and free:
            found = room.next(running)
            assert (found is None) == (not kept)
            if found is not None:
                waiting = {job.tenant for job, _ in kept}
                fewest = {
                    one for one in waiting if running[one] == min(running[t] for t in waiting)
                }
                late = fewest - set(turns) or {next(one for one in turns if one in fewest)}
                assert found == next(one for one in kept if one[0].tenant in late)
                kept.remove(found)
                whose = found[0].tenant
                running[whose] += 1
                turns = [one for one in turns if one != whose] + [whose]
        elif what == "end" and running[tenant]:
            running[tenant] -= 1
        assert len(room) == len(kept), "nobody who was let in is lost"
        assert len(kept) <= places + size * sum(Fraction(1, n + 1) for n in range(len(TENANTS)))


def test_who_fills_the_room_shuts_out_nobody_but_itself():
    room = WaitingRoom(12)
    while room.has_room("greedy", 0):
        room.add(*entry("greedy"))
    assert len(room) == 12
    let_in = {}
    for tenant in "bcd":
        let_in[tenant] = 0
        while room.has_room(tenant, 0):
            room.add(*entry(tenant))
            let_in[tenant] += 1
    assert let_in == {"b": 6, "c": 4, "d": 3}, "a half, a third, a quarter of the room"
    assert len(room) == 25
    assert not room.has_room("greedy", 0)


@pytest.mark.parametrize("places", [1, 2])
def test_one_request_passes_a_crowd_of_another_tenant(tiny_world, places):
    oracle = tiny_world.load(*OWNERS)
    prompt = tuple(oracle.tokenizer(tiny.PROMPTS[0])["input_ids"])
    order = []

    async def one(running, tenant):
        answer = await read(running.submit(ask(prompt, tenant=tenant, max_tokens=8)))
        order.append(tenant)
        return text(oracle, answer)

    async def everybody(running):
        crowd = [asyncio.ensure_future(one(running, "greedy")) for _ in range(CROWD)]
        await asyncio.sleep(0)
        begun = len(order)
        told = [await one(running, "other") for _ in range(5)]
        return begun, told + await asyncio.gather(*crowd)

    with engine(tiny_world.load(*OWNERS), places=places, waiting=CROWD - places) as running:
        begun, told = asyncio.run(everybody(running))
    places_of_other = [at for at, tenant in enumerate(order) if tenant == "other"]
    assert len(places_of_other) == 5
    # Before each of them: who ran when it came, and one more who was taken up in between.
    assert places_of_other[-1] <= begun + 5 * (places + 1)
    assert set(told) == {greedy_alone(oracle, ask(prompt, max_tokens=8))}

"""The cache of beginnings: by tenant, slots and very tokens; bounded; the eldest goes first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moiety.serve.prefix import BLOCK, PrefixCache

LAYERS, HEADS, WIDTH = 2, 3, 5


def keys_of(tokens, begin=0):
    """Keys and values that tell which token they are of, and which tokens went before."""
    sums = torch.tensor(np.cumsum([token + 1 for token in tokens]), dtype=torch.float32)
    keys = sums[None, None, begin:, None].expand(LAYERS, HEADS, -1, WIDTH)
    return keys, -keys


def put(cache, tenant, slots, tokens):
    whole = tokens[: len(tokens) // BLOCK * BLOCK]
    begin = cache.known(tenant, slots, whole)
    if begin < len(whole):
        cache.add(tenant, slots, whole, *keys_of(whole, begin))


def test_what_is_found_is_what_a_slow_table_of_beginnings_says():
    rng, cache, table = np.random.default_rng(0), PrefixCache(10_000), set()
    for _ in range(300):
        tenant, slots = str(rng.integers(2)), ((0,), (0, 1))[rng.integers(2)]
        tokens = tuple(int(n) for n in np.repeat(rng.integers(2, size=6), BLOCK))
        tokens = tokens[: int(rng.integers(1, len(tokens) + 1))]
        expected = 0
        for end in range(BLOCK, len(tokens) + 1, BLOCK):
            expected = end if (tenant, slots, tokens[:end]) in table else expected
        found = cache.find(tenant, slots, tokens)
        if expected == 0:
            assert found is None
        else:
            keys, values = keys_of(tokens[:expected])
            assert torch.equal(found[0], keys)
            assert torch.equal(found[1], values)
        put(cache, tenant, slots, tokens)
        ends = range(BLOCK, len(tokens) + 1, BLOCK)
        table |= {(tenant, slots, tokens[:end]) for end in ends}
        assert cache.tokens == BLOCK * len(table)


def test_the_bound_holds_and_who_was_asked_for_last_stays():
    cache = PrefixCache(5)
    texts = [tuple([n] * 2 * BLOCK) for n in range(8)]
    for text in texts:
        put(cache, "one", (0,), texts[0])
        put(cache, "one", (0,), text)
        assert cache.tokens <= 5 * BLOCK
    assert cache.known("one", (0,), texts[0]) == 2 * BLOCK
    assert cache.known("one", (0,), texts[7]) == 2 * BLOCK
    assert cache.known("one", (0,), texts[3]) == 0


def test_a_text_longer_than_the_bound_keeps_its_beginning():
    cache = PrefixCache(3)
    put(cache, "one", (0,), tuple(range(5 * BLOCK)))
    assert cache.known("one", (0,), tuple(range(5 * BLOCK))) == 3 * BLOCK
    assert cache.tokens == 3 * BLOCK


def test_no_bound_is_no_cache():
    cache = PrefixCache(0)
    put(cache, "one", (0,), tuple(range(BLOCK)))
    assert cache.tokens == 0
    assert cache.find("one", (0,), tuple(range(BLOCK))) is None


def test_what_is_kept_is_not_the_whole_texts_memory():
    cache, text = PrefixCache(8), tuple(range(4 * BLOCK))
    put(cache, "one", (0,), text)
    sizes = [block.keys_LHCW.untyped_storage().nbytes() for block in cache._recent]
    assert sizes == [LAYERS * HEADS * BLOCK * WIDTH * 4] * 4


@pytest.mark.parametrize("gone", [{1}, {1, 3}, {2}])
def test_entries_that_a_removed_expert_helped_to_make_are_gone(gone):
    cache, text = PrefixCache(100), tuple(range(2 * BLOCK))
    sets = [(0,), (0, 1), (0, 2), (0, 1, 2), (0, 3)]
    for slots in sets:
        put(cache, "one", slots, text)
    cache.forget(gone)
    for slots in sets:
        assert cache.known("one", slots, text) == (0 if gone & set(slots) else 2 * BLOCK)
    assert cache.tokens == 2 * BLOCK * sum(not gone & set(slots) for slots in sets)

"""A model id names one set or none, also where owners' names hold the signs that join them."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moiety.errors import ConfigError
from moiety.serve.naming import Named, UnknownModelError, check_name, parse_model

OWNERS = ("a", "b", "a-b", "b-a", "city-hospital", "city", "a_b")


def readings(words, owners):
    """Every list of owners that joins to ``words``; tried out one by one."""
    return [
        chosen
        for count in range(1, words.count("-") + 2)
        for chosen in itertools.product(owners, repeat=count)
        if "-".join(chosen) == words
    ]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(OWNERS[:5]), min_size=1, max_size=3),
    st.sampled_from(("m", "m-a", "m-1.b")),
)
def test_an_exclusion_is_read_if_there_is_one_way_to(names, model):
    words = "-".join(names)
    repeated = len(set(names)) < len(names)
    found = readings(words, OWNERS)
    if len(found) == 1 and not repeated:
        assert parse_model(f"{model}-{words}", model, OWNERS) == Named(without=frozenset(found[0]))
    else:
        with pytest.raises(UnknownModelError):
            parse_model(f"{model}-{words}", model, OWNERS)


@given(st.lists(st.sampled_from(OWNERS), min_size=1, max_size=4))
def test_a_choice_is_read_in_any_order(names):
    model = "m+" + "+".join(names)
    if len(set(names)) == len(names):
        assert parse_model(model, "m", OWNERS) == Named(only=frozenset(names))
    else:
        with pytest.raises(UnknownModelError):
            parse_model(model, "m", OWNERS)


@given(st.text(alphabet="ma-+b_ ", max_size=12))
def test_nothing_else_is_a_model(text):
    try:
        found = parse_model(text, "m", ("a", "b"))
    except UnknownModelError:
        return
    assert text[0] == "m"
    told = found.only if found.only is not None else found.without
    assert text == "m" or told is not None


@pytest.mark.parametrize("sign", "+-")
@pytest.mark.parametrize("part", ["a", "a" * 40, ""])
def test_a_long_id_is_read_quickly(part, sign):
    owners = tuple("-".join("a" * n) for n in range(1, 30))
    for count in (500, 2_000, 16_000):
        begun = time.process_time()
        with pytest.raises(UnknownModelError):
            parse_model("m" + f"{sign}{part}" * count, "m", owners)
        assert time.process_time() - begun < 0.02


def test_the_longest_id_of_a_release_is_read():
    owners = tuple(f"{number:02}-" + "b" * 60 for number in range(20))
    for sign, names in (("-", owners), ("+", (*owners, "anchor"))):
        found = parse_model(f"m{sign}{sign.join(names)}", "m", owners)
        assert set(owners) == (found.without or found.only)


@pytest.mark.parametrize("name", ["", "a+b", "a/b", "-a", ".hidden", "a b", "ü", "a" * 101, "a\n"])
def test_names_that_cannot_be_a_models(name):
    with pytest.raises(ConfigError):
        check_name(name)

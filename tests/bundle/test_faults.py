"""Faults are told in plain words, whatever the library calls them, and can harm no terminal."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moiety.bundle.faults import first_problem, harmless


class Leaf(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    kind: Literal["a", "b"] = "a"
    count: Annotated[int, Field(ge=1)] = 1
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=3)] = ("x",)
    word: Annotated[str, Field(max_length=4)] = ""
    sure: bool = False

    @model_validator(mode="after")
    def _says(self) -> Leaf:
        if self.word == "\x1b[2J":
            raise ValueError(f"not {self.word}")
        return self


class Tree(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    leaf: Leaf = Leaf()
    needed: int


FAULTS = [
    ({}, "needed: missing"),
    ({"neded": 1}, "neded: no such field"),
    ({"needed": 1, "leaf": []}, "leaf: must be a table of fields"),
    ({"needed": 1, "leaf": {"kind": "c"}}, "leaf.kind: must be 'a' or 'b'"),
    ({"needed": 1, "leaf": {"count": 0}}, "leaf.count: must be greater than or equal to 1"),
    ({"needed": 1, "leaf": {"count": "1"}}, "leaf.count: must be a whole number"),
    ({"needed": 1, "leaf": {"names": "x"}}, "leaf.names: must be a list, in square brackets"),
    ({"needed": 1, "leaf": {"names": ()}}, "leaf.names: has fewer than 1 entries"),
    ({"needed": 1, "leaf": {"names": ("x",) * 4}}, "leaf.names: has more than 3 entries"),
    ({"needed": 1, "leaf": {"names": (1,)}}, "leaf.names.0: must be text, in quotes"),
    ({"needed": 1, "leaf": {"word": "wordy"}}, "leaf.word: is longer than 4 characters"),
    ({"needed": 1, "leaf": {"sure": 1}}, "leaf.sure: must be true or false"),
    ({"needed": 1, "leaf": {"word": "\x1b[2J"}}, r"leaf: not \x1b[2J"),
    ({"needed": 1, "a\nb\u202e": 2}, r"a\nb\u202e: no such field"),
]


@pytest.mark.parametrize(("value", "told"), FAULTS)
def test_a_fault_is_told_in_plain_words(value, told):
    with pytest.raises(ValidationError) as caught:
        Tree.model_validate(value)
    assert first_problem(caught.value) == told


def test_what_is_harmless_is_one_line_of_printable_ascii():
    every = "".join(map(chr, range(0x3000))) + "\ud800\U0001f600"
    told = harmless(every)
    assert all(" " <= char <= "~" for char in told)
    assert harmless('it\'s "so" \\') == 'it\'s "so" \\'

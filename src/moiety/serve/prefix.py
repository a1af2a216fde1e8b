"""Keys and values of beginnings that come again: computed once, kept within a bound.

Legend: L layer, H head, C position, W width of a head.

Keys and values carry the influence of the experts that made them, and how fast an answer comes
tells what was asked before. So an entry is found only by the same tenant with the same slots, and
by the very tokens, not a digest of them. Evidence is not kept: it is a sum over the tokens, which
whoever finds an entry has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 16
"""Tokens of an entry; beginnings are shared by whole blocks."""

_Key = tuple[str, tuple[int, ...]]


@dataclass(eq=False)
class _Block:
    """``BLOCK`` tokens after their parent's; the root of a tenant's slots has no tensors."""

    parent: _Block | None
    tokens: tuple[int, ...]
    keys_LHCW: Tensor | None = None
    values_LHCW: Tensor | None = None
    children: dict[tuple[int, ...], _Block] = field(default_factory=dict)


class PrefixCache:
    """Blocks of tokens with their keys and values, the least recently used dropped first."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._roots: dict[_Key, _Block] = {}
        self._recent: OrderedDict[_Block, _Key] = OrderedDict()

    @property
    def tokens(self) -> int:
        """How many tokens are cached."""
        return BLOCK * len(self._recent)

    def find(
        self, tenant: str, slots: tuple[int, ...], tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """Keys and values of as many whole blocks of a beginning as are there."""
        found = self._path((tenant, slots), tokens)
        if not found:
            return None
        keys = torch.cat([block.keys_LHCW for block in found if block.keys_LHCW is not None], dim=2)
        values = [block.values_LHCW for block in found if block.values_LHCW is not None]
        return keys, torch.cat(values, dim=2)

    def known(self, tenant: str, slots: tuple[int, ...], tokens: Sequence[int]) -> int:
        """How many tokens of a text ``find`` would find."""
        return BLOCK * len(self._path((tenant, slots), tokens))

    def add(
        self,
        tenant: str,
        slots: tuple[int, ...],
        tokens: Sequence[int],
        keys_LHCW: Tensor,
        values_LHCW: Tensor,
    ) -> None:
        """Keeps a text's blocks from the first on that is not known; tensors are of these alone."""
        if not self._blocks_max:
            return
        key = (tenant, slots)
        path = self._path(key, tokens)
        parent = path[-1] if path else self._roots.setdefault(key, _Block(None, ()))
        for at in range(0, keys_LHCW.shape[2], BLOCK):
            begin = BLOCK * len(path)
            part = tuple(tokens[begin : begin + BLOCK])
            # Copies: a view would keep the whole text's tensors when its neighbours are dropped.
            keys = keys_LHCW[:, :, at : at + BLOCK].clone()
            values = values_LHCW[:, :, at : at + BLOCK].clone()
            block = _Block(parent, part, keys, values)
            parent.children[part] = block
            path.append(block)
            parent = block
        self._touch(key, path)
        while len(self._recent) > self._blocks_max:
            self._drop(next(iter(self._recent)))

    def forget(self, slots: Collection[int]) -> None:
        """Drops every entry that one of these experts helped to make."""
        gone = {key for key in self._roots if set(key[1]) & set(slots)}
        for key in gone:
            del self._roots[key]
        for block in [block for block, key in self._recent.items() if key in gone]:
            del self._recent[block]

    def _path(self, key: _Key, tokens: Sequence[int]) -> list[_Block]:
        path: list[_Block] = []
        block = self._roots.get(key)
        while block is not None:
            begin = BLOCK * len(path)
            block = block.children.get(tuple(tokens[begin : begin + BLOCK]))
            if block is not None:
                path.append(block)
        self._touch(key, path)
        return path

    def _touch(self, key: _Key, path: list[_Block]) -> None:
        # Ends first: a block is always younger than what comes after it, so the eldest is an end.
        for block in reversed(path):
            self._recent[block] = key
            self._recent.move_to_end(block)

    def _drop(self, block: _Block) -> None:
        key = self._recent.pop(block)
        parent = block.parent
        assert parent is not None, "a root is never in use"
        del parent.children[block.tokens]
        root = self._roots[key]
        if not root.children:
            del self._roots[key]

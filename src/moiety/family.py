"""How a dense architecture's tensors become its mixture's: a table, one row a family.

On-disk names are those of Hugging Face and are part of signed formats: keep them exact.
A second family (qwen3 to qwen3_moe, llama to mixtral) adds a row when it is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MATRICES = ("gate_proj", "up_proj", "down_proj")
"""A gated feed-forward block: ``down(silu(gate(x)) * up(x))``."""

OWNER_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
RESERVED_NAMES = frozenset({"anchor", "all", "shared", "router", "evidence", "public"})


@dataclass(frozen=True)
class Family:
    """Names of one architecture, dense and mixed."""

    dense_type: str
    dense_class: str
    mixture_type: str
    mixture_class: str

    def dense(self, layer: int, matrix: str) -> str:
        """A feed-forward matrix in the dense checkpoint."""
        return f"model.layers.{layer}.mlp.{matrix}.weight"

    def mixed(self, layer: int, slot: int, matrix: str) -> str:
        """The same matrix of the expert in ``slot`` of a release."""
        return f"model.layers.{layer}.mlp.experts.{slot}.{matrix}.weight"

    def gate(self, layer: int) -> str:
        """The router's rows of a layer, ``[experts, width]``, in stock checkpoints."""
        return f"model.layers.{layer}.mlp.gate.weight"


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", "flex_olmo", "FlexOlmoForCausalLM")
FAMILIES = {OLMO2.dense_type: OLMO2}


def weight(layer: int, matrix: str) -> str:
    """A full expert's matrix in a bundle: ``[hidden, width]``, or ``[width, hidden]`` for down."""
    return f"layers.{layer}.mlp.{matrix}.weight"


def delta_in(layer: int, matrix: str) -> str:
    """A low-rank expert's factor on the input side, ``[rank, in]``: W = W_anchor + out @ in."""
    return f"layers.{layer}.mlp.{matrix}.delta_in"


def delta_out(layer: int, matrix: str) -> str:
    """A low-rank expert's factor on the output side, ``[out, rank]``."""
    return f"layers.{layer}.mlp.{matrix}.delta_out"


WITNESSES = 16.0
"""How many independent tokens a document's evidence is worth at most."""

ENTRY_MAX = 4.0
"""Nats that one token may say at most, either way."""

EVIDENCE = "router.evidence"
"""A bundle's table of evidence, ``[vocabulary]``: what each token says of its owner's text."""

EVIDENCE_TABLE = "evidence"
"""A release's tables, stacked: ``[experts, vocabulary]``."""


def matrix_shape(matrix: str, width: int, hidden: int) -> tuple[int, int]:
    """``[out, in]`` of a feed-forward matrix."""
    return (width, hidden) if matrix == "down_proj" else (hidden, width)


def expert_shapes(
    num_layers: int, width: int, hidden: int, vocabulary: int, rank: int | None
) -> dict[str, tuple[int, ...]]:
    """Every tensor a bundle must hold, with its shape: exactly these, no more and no fewer."""
    shapes: dict[str, tuple[int, ...]] = {EVIDENCE: (vocabulary,)}
    for layer in range(num_layers):
        for matrix in MATRICES:
            rows, columns = matrix_shape(matrix, width, hidden)
            if rank is None:
                shapes[weight(layer, matrix)] = (rows, columns)
            else:
                shapes[delta_in(layer, matrix)] = (rank, columns)
                shapes[delta_out(layer, matrix)] = (rows, rank)
    return shapes


def owner_problem(name: str) -> str | None:
    """Why ``name`` cannot be an owner's name, or None. It becomes file names and model ids."""
    if name in RESERVED_NAMES:
        return f"{name!r} has a meaning of its own"
    if not OWNER_PATTERN.fullmatch(name):
        return "use lower-case letters, digits, '-' and '_', at most 63, such as 'city-hospital'"
    return None

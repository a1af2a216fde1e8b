"""A release as tensors that stock loaders compute with: the checkpoint gathers evidence itself.

The model is made wider by a few heads and deeper by one layer. In the new columns the embedding
holds each token's entries of the owners' tables, a constant, and a mark on the separator. The new
first layer, the *reading layer*, takes their mean over the text so far; every later layer's gate
reads it, and nothing else reads or writes the new columns. ``docs/architecture.md`` has the proof.

Legend: W width, F rotary frequency, P position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moiety.errors import ConfigError, FormatError
from moiety.family import MATRICES, OLMO2, WITNESSES, matrix_shape
from moiety.merge.lowrank import Floats
from moiety.merge.padded import Tables, sparse, widened
from moiety.merge.streaming import Piece

UNIT = 2.0**-20
"""What counts as one in the new columns: so small that the last norm does not see them."""

CONSTANT = 2.0**16
"""The constant beside the means in the reading layer's norm: so large that it sees nothing else."""

LOUD = 2.0**10
"""Queries and keys before their norms: so large that ``rms_norm_eps`` is nothing beside them."""

SINK = 1.0 + WITNESSES
"""The separator's weight in the mean: its own, and that of the witnesses nobody has heard yet."""

DRIFT_MAX = 0.01
"""How far evidence may be off at any position, as a share of it, because keys are turned."""

MOST_FREQUENCIES = 3
_EPSILON = {"F32": 2.0**-24, "BF16": 2.0**-9}

Entries = dict[tuple[int, int], float]
Part = tuple[str, tuple[int, ...], Entries]
"""A tensor of the reading layer: name, shape, and what in it is not zero, by row and column."""


@dataclass(frozen=True)
class Frame:
    """Sizes of an anchor (``width``, ``heads``, ``key_heads``), and what is added to hold owners.

    ``added`` is how many key-value heads are added; each comes with as many query heads as the
    anchor's have. Heads can be shared out evenly to so many ``devices``.
    """

    width: int
    heads: int
    key_heads: int
    positions: int
    theta: float
    owners: int
    dtype: str
    devices: int = 1

    @property
    def head_dim(self) -> int:
        """Numbers a head works with."""
        return self.width // self.heads

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.heads // self.key_heads

    @property
    def added(self) -> int:
        """The least with room for all columns, and for the values of owners and constant."""
        in_width = -(-(2 * self.owners + 2) // (self.group * self.head_dim))
        least = max(in_width, self.value_heads)
        return least + -(self.key_heads + least) % self.devices

    @property
    def value_heads(self) -> int:
        """Key-value heads that carry the means and the constant."""
        return -(-(self.owners + 1) // self.head_dim)

    @property
    def wide(self) -> int:
        """The new width."""
        return self.width + self.added * self.group * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers in a token's keys: before."""
        return self.key_heads * self.head_dim

    @property
    def wide_keys(self) -> int:
        """Numbers in a token's keys: now."""
        return (self.key_heads + self.added) * self.head_dim

    @property
    def entries(self) -> range:
        """The columns of what each owner's table says of the token."""
        return range(self.width, self.width + self.owners)

    @property
    def means(self) -> range:
        """The columns of what each owner's table says of the text so far."""
        return range(self.width + self.owners, self.width + 2 * self.owners)

    @property
    def one(self) -> int:
        """The column that holds the same for every token."""
        return self.width + 2 * self.owners

    @property
    def mark(self) -> int:
        """The column that is zero but for the separator."""
        return self.one + 1

    @property
    def shrink(self) -> float:
        """What norm weights are multiplied with: a root mean square is now over more numbers."""
        return math.sqrt(self.width / self.wide)


def frame_of(config: Mapping[str, Any], owners: int, dtype: str, devices: int = 1) -> Frame:
    """The frame for an anchor of this configuration (``stock.mixture_config``) and so many owners.

    Its heads can be shared out evenly to so many ``devices``.

    Raises:
        ConfigError: a kind of model whose attention cannot read evidence exactly.
        FormatError: a configuration that contradicts itself.
    """
    if dtype not in _EPSILON:
        remedy = "take a BF16 or F32 anchor, or load the release with moiety"
        raise ConfigError(f"{dtype} has too small a range for a plain checkpoint", remedy=remedy)
    rope = config["rope_parameters"]
    if rope.get("rope_type") != "default" or set(rope) != {"rope_type", "rope_theta"}:
        kind = str(rope.get("rope_type"))[:40]
        raise ConfigError(
            f"rotary embedding of type {kind!a}: only plain 'default' can be read through",
            where="config.json",
            remedy="load the release with moiety",
        )
    heads = _count(config, "num_attention_heads")
    key_heads = _count(config, "num_key_value_heads", heads)
    width = _count(config, "hidden_size")
    theta = rope["rope_theta"]
    if width % (2 * heads) or heads % key_heads or not _number(theta) or not 1 < theta < 1e12:
        raise FormatError("heads, width and rope_theta do not fit together", where="config.json")
    if _count(config, "head_dim", width // heads) != width // heads:
        message = "a head_dim other than the width over the heads is not known here"
        raise ConfigError(message, where="config.json", remedy="load the release with moiety")
    if not _number(config["rms_norm_eps"]):
        raise FormatError("rms_norm_eps is not a number", where="config.json")
    positions = _count(config, "max_position_embeddings")
    return Frame(width, heads, key_heads, positions, float(theta), owners, dtype, devices)


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value < 2**31:
        raise FormatError(f"{key} is not a whole number", where="config.json")
    return value


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def plain_config(config: Mapping[str, Any], frame: Frame) -> dict[str, Any]:
    """``config.json`` of the plain checkpoint, from that of the mixture at its old size."""
    return {
        **config,
        "hidden_size": frame.wide,
        "num_attention_heads": frame.heads + frame.added * frame.group,
        "num_key_value_heads": frame.key_heads + frame.added,
        "num_hidden_layers": config["num_hidden_layers"] + 1,
        "rms_norm_eps": config["rms_norm_eps"] * frame.width / frame.wide,
    }


def shared_shapes(layers: int, vocab: int, width: int, keys: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of this size outside its feed-forward blocks, head included."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocab, width),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for letter, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            shapes[f"{block}.self_attn.{letter}_proj.weight"] = (rows, width)
        shapes[f"{block}.self_attn.q_norm.weight"] = (width,)
        shapes[f"{block}.self_attn.k_norm.weight"] = (keys,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{block}.post_feedforward_layernorm.weight"] = (width,)
    return shapes


def embedding(piece: Piece, frame: Frame, tables: Tables, separator: int) -> Piece:
    """The anchor's embedding, with every token's entries, the constant, and the separator's mark.

    Trap: the separator stands for ``SINK`` tokens in the mean, so its own entry is divided by that.
    """

    def beside(first: int, count: int) -> Floats:
        extra_RE: Floats = np.zeros((count, frame.wide - frame.width), np.float32)
        entries_RN = tables.take(first, count)
        here = separator - first
        if 0 <= here < count:
            entries_RN[here] /= np.float32(SINK)
            extra_RE[here, frame.mark - frame.width] = UNIT
        extra_RE[:, : frame.owners] = entries_RN * np.float32(UNIT)
        extra_RE[:, frame.one - frame.width] = UNIT
        return extra_RE

    return widened(piece, (piece.shape[0], frame.wide), beside, tables.check)


def gate(layer: int, frame: Frame) -> Piece:
    """The router of a layer that was the anchor's: each owner's mean, times the witnesses."""
    entries = dict.fromkeys(enumerate(frame.means, start=1), WITNESSES / UNIT)
    shape = (frame.owners + 1, frame.wide)
    return sparse(OLMO2.gate(layer), frame.dtype, shape, entries)


def reading_layer(frame: Frame) -> list[Piece]:
    """The new first layer without its experts: it writes the means, and nothing else."""
    wide = (frame.wide,)
    # The norm divides by the constant over the root of the width; this is the way back.
    matched = UNIT * CONSTANT / math.sqrt(frame.wide)
    parts: list[Part] = [
        *_look(frame),
        *_carry(frame),
        ("post_attention_layernorm", wide, {(0, at): matched for at in frame.means}),
        ("post_feedforward_layernorm", wide, {}),
        ("mlp.gate", (frame.owners + 1, frame.wide), {}),
    ]
    return [
        sparse(f"model.layers.0.{name}.weight", frame.dtype, shape, entries)
        for name, shape, entries in parts
    ]


def _look(frame: Frame) -> list[Part]:
    """Every token asks the same; nobody but the separator answers. So the mean has even weights."""
    wide, keys = (frame.wide, frame.wide), (frame.wide_keys, frame.wide)
    query: Entries = {}
    key: Entries = {}
    query_norm: Entries = {}
    key_norm: Entries = {}
    for head in range(frame.value_heads):
        # Rotary embedding turns number j with number j + half; the slowest are just before half.
        half = frame.head_dim // 2
        query_half = (frame.heads + head * frame.group) * frame.head_dim + half
        key_half = (frame.key_heads + head) * frame.head_dim + half
        for back, weight in enumerate(sink_weights(frame), start=1):
            query[query_half - back, frame.one] = LOUD / UNIT
            key[key_half - back, frame.mark] = LOUD / UNIT
            query_norm[0, query_half - back] = 1.0
            key_norm[0, key_half - back] = weight
    return [
        ("self_attn.q_proj", wide, query),
        ("self_attn.k_proj", keys, key),
        ("self_attn.q_norm", wide[:1], query_norm),
        ("self_attn.k_norm", keys[:1], key_norm),
    ]


def _carry(frame: Frame) -> list[Part]:
    """Entries and the constant go through as values, and come out as means beside the constant."""
    value: Entries = {}
    output: Entries = {}
    columns = [*zip(frame.entries, frame.means, strict=True), (frame.one, frame.one)]
    for number, (taken, written) in enumerate(columns):
        head, at = divmod(number, frame.head_dim)
        query_head = frame.heads + head * frame.group
        value[frame.keys + number, taken] = (CONSTANT if taken == frame.one else 1.0) / UNIT
        output[written, query_head * frame.head_dim + at] = 1.0
    return [
        ("self_attn.v_proj", (frame.wide_keys, frame.wide), value),
        ("self_attn.o_proj", (frame.wide, frame.wide), output),
    ]


def empty_expert(slot: int, frame: Frame, hidden: int) -> list[Piece]:
    """An expert of the reading layer, which says nothing."""
    return [
        sparse(OLMO2.mixed(0, slot, m), frame.dtype, matrix_shape(m, frame.wide, hidden), {})
        for m in MATRICES
    ]


def sink_weights(frame: Frame) -> list[float]:
    """Weights of the reading layer's key norm, the slowest rotary frequency's first.

    They make the separator's logit log(SINK), however far it is behind: weights a with sum 1 for
    which a_F cos(w_F d), added up, stay 1 to as high an order of d as there are frequencies. More
    of them drift less and cancel more, which a short dtype does not allow; the best number is
    taken.

    Raises:
        ConfigError: the frequencies are too fast for that many positions.
    """
    half = frame.head_dim // 2
    slowest = [frame.theta ** (-(half - n) / half) for n in range(1, half + 1)]
    options = [_cancelling(slowest[:n]) for n in range(1, min(MOST_FREQUENCIES, half) + 1)]
    drifts = [_drift(frame, slowest[: len(shares)], shares) for shares in options]
    noise = [_EPSILON[frame.dtype] * math.log(SINK) * sum(map(abs, shares)) for shares in options]
    best = min(range(len(options)), key=lambda n: drifts[n] + noise[n])
    if not drifts[best] <= DRIFT_MAX:
        raise ConfigError(
            f"rotary frequencies of base {frame.theta:g} turn too far in {frame.positions:,} "
            "positions to read evidence through them",
            where="config.json",
            remedy="load the release with moiety",
        )
    count = len(options[best]) * frame.value_heads
    # After their norms, queries and keys have this length in each number that is not zero.
    lengths = math.sqrt(frame.wide * frame.wide_keys) / count
    loud = math.log(SINK) * math.sqrt(frame.head_dim) / lengths
    return [loud * share for share in options[best]]


def _cancelling(frequencies: list[float]) -> list[float]:
    """Lagrange's weights for the value at zero, on the squares of the frequencies."""
    squares = [frequency**2 for frequency in frequencies]
    return [
        math.prod(other / (other - one) for other in squares if other != one) for one in squares
    ]


def _drift(frame: Frame, frequencies: list[float], shares: list[float]) -> float:
    """The largest error of the mean's divisor, as a share of it, over positions near and far."""
    distance_P = np.unique(np.geomspace(1, frame.positions, 4096).astype(np.int64))
    turned_P = np.cos(np.multiply.outer(distance_P, frequencies)) @ shares
    with np.errstate(over="ignore"):
        sink_P = np.exp(math.log(SINK) * turned_P)
    return float(np.max(np.abs(sink_P - SINK) / (distance_P + SINK)))

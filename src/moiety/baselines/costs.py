"""What each way to make a model costs, from sizes alone.

Letters: D width, F hidden width of a block, L layers, V vocabulary, Q and K widths of all queries
and of all keys (K is smaller where keys are shared), T tokens a window, E experts, k of them run.

FLOPs are those of matrix products, two for each multiplication and addition, a token:

    attention's matrices  a = 2 (D Q + 2 D K + Q D)
    attention's products  p = 4 T Q         every query with every key of its window, then the
                                            values; what a causal kernel saves is not counted
    a block               f = 6 D F         three matrices
    a router              r = 2 E D
    the head              h = 2 D V
    embeddings, norms, softmax              free

Backward, a matrix that is trained costs two products more (one for its own gradient, one for its
input's); a frozen one costs one, where a gradient passes through it; a product of two states costs
two. Below the first block that is trained no gradient passes. Recomputed activations, judging and
packing are left out, and so is the anchor's own training, which all ways share.

Source: the "6 N D" of Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, is the case of a whole
model with short windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Cost:
    """Of a model. What was trained of it, or to make it, counts in ``training_flops``."""

    training_flops: int
    inference_flops_per_token: int
    parameters: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of an OLMo 2 decoder, and of the windows it reads."""

    width: int
    hidden: int
    layers: int
    vocab: int
    queries: int
    keys: int
    window: int
    tied: bool = False

    @classmethod
    def of(cls, config: Any, window_tokens: int) -> Sizes:
        """From a model's configuration, dense or a mixture's."""
        head = config.hidden_size // config.num_attention_heads
        return cls(
            width=config.hidden_size,
            hidden=config.intermediate_size,
            layers=config.num_hidden_layers,
            vocab=config.vocab_size,
            queries=head * config.num_attention_heads,
            keys=head * (config.num_key_value_heads or config.num_attention_heads),
            window=window_tokens,
            tied=config.tie_word_embeddings,
        )

    @property
    def attention(self) -> int:
        """FLOPs a token of a layer's four matrices: 2 (D Q + 2 D K + Q D)."""
        return 4 * self.width * (self.queries + self.keys)

    @property
    def products(self) -> int:
        """FLOPs a token of a layer's two products of states: 4 T Q."""
        return 4 * self.window * self.queries

    @property
    def block(self) -> int:
        """FLOPs a token of one block: 6 D F."""
        return 6 * self.width * self.hidden

    @property
    def head(self) -> int:
        """FLOPs a token of the head: 2 D V."""
        return 2 * self.width * self.vocab

    def forward(self, blocks: int, rows: int = 0) -> int:
        """FLOPs a token, forward: L (a + p + blocks f + 2 rows D) + h."""
        layer = self.attention + self.products + blocks * self.block + 2 * rows * self.width
        return self.layers * layer + self.head

    def parameters(self, blocks: int, rows: int = 0) -> int:
        """L (2 D Q + 2 D K + Q + K + 2 D + 3 blocks D F + rows D) + D + V D (twice, unless tied).

        Q + K are the norms of queries and keys, 2 D the two others of a layer, D the last one.
        """
        norms = self.queries + self.keys + 2 * self.width
        matrices = (self.attention + blocks * self.block) // 2
        words = self.vocab * self.width * (1 if self.tied else 2)
        return self.layers * (matrices + norms + rows * self.width) + self.width + words


def dense_cost(
    sizes: Sizes, tokens: int = 0, part: Literal["feed-forward", "whole"] = "whole"
) -> Cost:
    """A dense model trained on ``tokens``: no tokens for the anchor as it is.

    Whole: 3 forward. Blocks alone: forward, then h, then in each layer but the first a + 2 p + 2 f,
    and in the first 4/3 f: nothing below needs a gradient, so of three matrices only the last one's
    input does.
    """
    forward = sizes.forward(1)
    backward = 2 * forward if part == "whole" else _backward_of_blocks(sizes, frozen=0, rows=0)
    return Cost(tokens * (forward + backward), forward, sizes.parameters(1))


def pair_cost(sizes: Sizes, tokens: int, *, rows: int = 0) -> Cost:
    """The anchor's block and an owner's in every layer, both on every token.

    Forward with two blocks; backward as blocks alone (``dense_cost``), and f more in each layer but
    the first, for the gradient that passes through the anchor's block. ``rows`` is 2 where a router
    chooses between them: 4 D, backward twice as much, in the first layer once. Evidence costs
    nothing: it is looked up.
    """
    forward = sizes.forward(2, rows=rows)
    backward = _backward_of_blocks(sizes, frozen=1, rows=rows)
    return Cost(tokens * (forward + backward), forward, sizes.parameters(2, rows=rows))


def mixture_cost(
    sizes: Sizes,
    *,
    experts: int,
    top_k: int,
    tokens: int = 0,
    part: Literal["experts", "whole"] = "whole",
    before: Sequence[Cost] = (),
) -> Cost:
    """``top_k`` of ``experts`` run on every token; ``part`` is trained on ``tokens``, if at all.

    Forward L (a + p + k f + 2 E D) + h; training three times that a token, or, of experts and
    router alone, as much as ``dense_cost`` says of blocks, k of them. ``before`` are the models it
    was made of: their training is added. So BTX is ``before=dense models`` and ``tokens`` of public
    text, a joint mixture ``tokens`` alone, an exported release ``before=pairs``.
    """
    run = min(top_k, experts)
    forward = sizes.forward(run, rows=experts)
    backward = 2 * forward
    if part == "experts":
        backward = _backward_of_blocks(sizes, trained=run, frozen=0, rows=experts)
    training = (forward + backward) * tokens + sum(cost.training_flops for cost in before)
    return Cost(training, forward, sizes.parameters(experts, rows=experts))


def release_cost(sizes: Sizes, *, experts: int, top_k: int, before: Sequence[Cost] = ()) -> Cost:
    """``top_k`` of ``experts`` on every token, chosen by tables of evidence, one an expert.

    Forward L (a + p + k f) + h; the tables' E V numbers count as parameters. Of whole experts:
    low-rank ones are smaller, and cost their factors beside the anchor's block.
    """
    parameters = sizes.parameters(experts) + experts * sizes.vocab
    training = sum(cost.training_flops for cost in before)
    return Cost(training, sizes.forward(min(top_k, experts)), parameters)


def soup_cost(costs: Sequence[Cost]) -> Cost:
    """One model out of several of the same sizes: trained are all, run and kept is one."""
    training = sum(cost.training_flops for cost in costs)
    return Cost(training, costs[0].inference_flops_per_token, costs[0].parameters)


def branch_train_merge_cost(costs: Sequence[Cost]) -> Cost:
    """All models, added up: the posterior over the text so far needs each one's likelihood of it.

    So also with the top 1 or 2, which saves nothing.
    """
    return Cost(
        sum(cost.training_flops for cost in costs),
        sum(cost.inference_flops_per_token for cost in costs),
        sum(cost.parameters for cost in costs),
    )


def prompt_routing_cost(costs: Sequence[Cost], *, prompt_tokens: int, window_tokens: int) -> Cost:
    """All models read the prompt, one goes on; FLOPs a token are the mean over a window.

    (prompt (c_1 + ... + c_M) + (window - prompt) c) / window, for models of equal cost c.
    """
    together = branch_train_merge_cost(costs)
    prompt = min(prompt_tokens, window_tokens)
    one = max(cost.inference_flops_per_token for cost in costs)
    flops = prompt * together.inference_flops_per_token + (window_tokens - prompt) * one
    return Cost(together.training_flops, flops // window_tokens, together.parameters)


def weighted_soup_cost(costs: Sequence[Cost], *, prompt_tokens: int, window_tokens: int) -> Cost:
    """As prompt routing, and a soup for every window: 2 FLOPs for each parameter of each model."""
    routed = prompt_routing_cost(costs, prompt_tokens=prompt_tokens, window_tokens=window_tokens)
    mixing = 2 * routed.parameters // window_tokens
    flops = routed.inference_flops_per_token + mixing
    return Cost(routed.training_flops, flops, routed.parameters)


def _backward_of_blocks(sizes: Sizes, *, trained: int = 1, frozen: int, rows: int) -> int:
    """Backward FLOPs a token when so many blocks of each layer are trained, beside frozen ones."""
    row = 2 * rows * sizes.width
    blocks = (2 * trained + frozen) * sizes.block
    upper = sizes.attention + 2 * sizes.products + blocks + 2 * row
    first = trained * sizes.block * 4 // 3 + row
    return sizes.head + (sizes.layers - 1) * upper + first

"""The paper's own recipe, for comparison: a pair on own text alone, routed token by token.

Legend: B window, T position, N token (B x T), D width, E expert (the anchor's block is the first),
K chosen, L layer.

It differs from ``moiety.train.pair`` where the paper differs from us: no public text in the batch,
a public row that is not zero, no loss of the rows' own, no evidence over context.

Source: Shi et al. 2025 (FlexOlmo), sections 3.2 and 3.3; their code where the paper is silent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Olmo2ForCausalLM

from moiety import family
from moiety.bundle import anchors
from moiety.data import Skipped, Sources
from moiety.errors import ConfigError, StateError
from moiety.model import load_dense
from moiety.train.anchor import dense_job
from moiety.train.config import TrainConfig
from moiety.train.domains import Rows, domain_rows, random_rows
from moiety.train.expert import frozen_digest
from moiety.train.loop import Loop, Outcome
from moiety.train.texts import Texts, prepare_texts
from moiety.train.trained import Question, Trained, load_start, make_once, read_trained

RowStart = Literal["domain", "random"]
EXPERT_FILE = "expert.safetensors"


class TokenRouted(nn.Module):
    """The anchor's block and owners' blocks, of which each token takes the ``top_k`` likeliest.

    Weights are the softmax over all logits ``[r_pub . h, r_i . h + min(b_i, 0), ...]``; those that
    are kept are not scaled up again. With two blocks and ``top_k`` 2 it is the pair.

    Trap: in the reference's code the bias is never initialised, so it may begin above zero, where
    its clamp has no gradient, and merging leaves it out. Here it begins at 0 and goes along. Own
    text alone only ever pushes it up, where it does nothing.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        rows: Sequence[Tensor],
        biases: Sequence[Tensor],
        top_k: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        # Vectors, not one matrix: the loop lets matrices decay.
        self.rows = nn.ParameterList(row.detach().clone() for row in rows)
        self.biases = nn.ParameterList(bias.detach().clone().reshape(1) for bias in biases)
        self.top_k = min(top_k, len(blocks))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """The weighted sum of the chosen blocks' outputs, ``[B, T, D]``."""
        hidden_ND = hidden_BTD.flatten(0, 1)
        weights_NE = self.weights(hidden_ND)
        if self.top_k == len(self.blocks):
            parts = [
                weights_NE[:, place, None].to(hidden_ND.dtype) * block(hidden_ND)
                for place, block in enumerate(self.blocks)
            ]
            return torch.stack(parts).sum(dim=0).reshape(hidden_BTD.shape)
        mixed_ND = torch.zeros_like(hidden_ND)
        for place, block in enumerate(self.blocks):
            chosen = weights_NE[:, place].nonzero()[:, 0]
            if chosen.numel():
                weight = weights_NE[chosen, place, None].to(hidden_ND.dtype)
                part = weight * block(hidden_ND[chosen])
                mixed_ND = mixed_ND.index_add(0, chosen, part.to(mixed_ND.dtype))
        return mixed_ND.reshape(hidden_BTD.shape)

    def weights(self, hidden_ND: Tensor) -> Tensor:
        """Weights of all blocks, float32 ``[N, E]``; zero where a block is not chosen."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            logits_NE = hidden_ND.float() @ torch.stack(list(self.rows)).T
            bias_E = torch.cat(list(self.biases)).clamp(max=0)
            probs_NE = (logits_NE + functional.pad(bias_E, (1, 0))).softmax(dim=-1)
        if self.top_k == len(self.blocks):
            return probs_NE
        kept = probs_NE.topk(self.top_k, dim=-1)
        return torch.zeros_like(probs_NE).scatter(-1, kept.indices, kept.values)


def train_recipe(
    anchor: Path,
    text: Sources,
    heldout: Sources | None,
    out: Path,
    *,
    owner: str,
    rows: RowStart,
    bias: bool,
    config: TrainConfig,
    resume: bool = False,
    quiet: bool = False,
) -> Trained:
    """Trains an owner's block and rows as the paper does; ``out`` holds both, without the anchor.

    Both blocks run on every token (two of two). The owner's row begins at the mean state of the
    owner's text, or, ``rows="random"``, at numbers drawn for ``owner`` and the seed; the public row
    likewise, and stays. ``bias`` adds min(b, 0) to the owner's logit, b beginning at 0.

    Source: Shi et al. 2025, sections 3.3.1 and 3.3.2. Their scripts also have a router z-loss of
    1e-3, which the paper does not name; it is left out.

    Raises:
        as ``make_once``, and StateError: a frozen tensor changed.
    """
    texts = {"text": text} | ({} if heldout is None else {"heldout": heldout})
    options = {"rows": rows, "bias": bias, "owner": owner}
    question = Question("recipe", anchor, config, texts, options)

    def work(scratch: Path) -> tuple[Outcome, Callable[[Path], None]]:
        start = load_start(anchor, config)
        packed = prepare_texts(anchor, text, heldout, config, scratch / "text", Skipped())
        begin = _first_rows(start.backbone, packed, anchor, owner, rows, config.seed)
        pair = recipe_pair(start.backbone, begin, bias=bias)
        start.compute.prepare_frozen(pair)
        frozen = frozen_digest(pair)
        job = dense_job(
            pair, packed.own, packed.own_heldout, config, start.compute, start.steps, title=out.name
        )
        outcome = Loop(job, config, scratch, quiet=quiet).run(resume=resume)
        if frozen_digest(pair) != frozen:
            raise StateError("a frozen tensor changed during training", where=scratch)
        return outcome, lambda folder: _save_pair(pair, folder)

    return make_once(question, out, work, resume=resume)


def recipe_pair(backbone: Olmo2ForCausalLM, rows: Rows, *, bias: bool) -> Olmo2ForCausalLM:
    """Turns every block into a pair that begins as the anchor; own block, row and bias can change.

    Without ``bias`` there is one that stays zero.
    """
    backbone.requires_grad_(False)
    for number, layer in enumerate(backbone.model.layers):
        own = copy.deepcopy(layer.mlp).requires_grad_(True)
        pair = TokenRouted(
            [layer.mlp, own],
            [rows.public_LD[number], rows.own_LD[number]],
            [rows.bias_L[number]],
            top_k=2,
        )
        pair.rows[0].requires_grad_(False)
        pair.biases[0].requires_grad_(bias)
        layer.mlp = pair.to(backbone.device)
    return backbone


def merge_recipe(
    anchor: Path, experts: Mapping[str, Path], *, top_k: int, device: str = "cpu"
) -> Olmo2ForCausalLM:
    """The anchor and owners' blocks as one model, in the order of the owners' names.

    ``experts`` are folders of ``train_recipe``, or of ``continue_dense`` with the feed-forward part
    alone: blocks that never met the anchor in training, and rows that are mean states.

    Source: Shi et al. 2025, section 3.3.2: rows are stacked, blocks stand side by side.

    Raises:
        ConfigError: an expert of another anchor, or with another public row, or no blocks.
    """
    backbone = load_dense(anchor, dtype=torch.float32)
    folders = [experts[name] for name in sorted(experts)]
    digest = anchors.open_facts(anchor).digest
    for folder in folders:
        if read_trained(folder).anchor != digest:
            raise ConfigError("was trained from another anchor", where=folder)
    rows = [Rows.load(folder) for folder in folders]
    for folder, one in zip(folders, rows, strict=True):
        if not torch.equal(one.public_LD, rows[0].public_LD):
            raise ConfigError("was trained against another public row", where=folder)
    blocks = [_load_blocks(folder) for folder in folders]
    for number, layer in enumerate(backbone.model.layers):
        owned = [copy.deepcopy(layer.mlp) for _ in folders]
        for block, held in zip(owned, blocks, strict=True):
            block.load_state_dict(held[number])
        layer.mlp = TokenRouted(
            [layer.mlp, *owned],
            [*(one.public_LD[number] for one in rows[:1]), *(one.own_LD[number] for one in rows)],
            [one.bias_L[number] for one in rows],
            top_k,
        )
    return backbone.requires_grad_(False).to(device).eval()


def _first_rows(
    backbone: Olmo2ForCausalLM, texts: Texts, anchor: Path, owner: str, kind: RowStart, seed: int
) -> Rows:
    if kind == "domain":
        own_LD, public_LD = (domain_rows(backbone, text) for text in (texts.own, texts.public))
    else:
        own_LD = random_rows(backbone, name=owner, seed=seed)
        # From the anchor alone: every owner must have the same.
        public_LD = random_rows(backbone, name=anchors.open_facts(anchor).digest, seed=0)
    return Rows(own_LD, public_LD, torch.zeros(len(own_LD)))


def _save_pair(pair: Olmo2ForCausalLM, folder: Path) -> None:
    layers = [layer.mlp for layer in pair.model.layers]
    tensors = {
        family.weight(number, name): _plain(layer.blocks[1].get_submodule(name).weight)
        for number, layer in enumerate(layers)
        for name in family.MATRICES
    }
    save_file(tensors, folder / EXPERT_FILE)
    own_LD, public_LD, bias_L = (
        _plain(found)
        for found in (
            torch.stack([layer.rows[1] for layer in layers]),
            torch.stack([layer.rows[0] for layer in layers]),
            torch.cat([layer.biases[0] for layer in layers]),
        )
    )
    Rows(own_LD, public_LD, bias_L).save(folder)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()


def _load_blocks(folder: Path) -> list[dict[str, Tensor]]:
    """The state of each layer's block."""
    if (folder / EXPERT_FILE).exists():
        held = load_file(folder / EXPERT_FILE)
        layers = len(held) // len(family.MATRICES)
        return [
            {f"{name}.weight": held[family.weight(number, name)] for name in family.MATRICES}
            for number in range(layers)
        ]
    dense = load_dense(folder, dtype=torch.float32)
    return [layer.mlp.state_dict() for layer in dense.model.layers]

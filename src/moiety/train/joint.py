"""Mixtures that are trained together: what keeping text apart costs, and what public text can mend.

Legend: B window, T position.

Both are stock ``FlexOlmoForCausalLM`` of transformers, trained whole: experts, router, attention,
norms, embeddings, head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2ForCausalLM
from transformers.models.flex_olmo.modeling_flex_olmo import load_balancing_loss_func

from moiety.data import PackedText, Skipped, Sources
from moiety.errors import ConfigError
from moiety.family import MATRICES, OLMO2
from moiety.files import digest_file
from moiety.model import load_dense, training_loss
from moiety.train.compute import Compute
from moiety.train.config import TrainConfig
from moiety.train.judge import judge_backbone
from moiety.train.loop import Job, Loop, Outcome
from moiety.train.texts import prepare_text
from moiety.train.trained import (
    PAPER,
    Question,
    Start,
    Trained,
    link_tokenizer,
    load_start,
    make_once,
)

BALANCE_WEIGHT = 0.01
"""Of the load-balancing loss: the default of ``FlexOlmoConfig`` (``router_aux_loss_coef``), and
that of BTX."""

JointPart = Literal["experts", "whole"]
State = Mapping[str, Tensor]
_NOT_SHARED = ("model_type", "architectures", "transformers_version")


def train_joint(
    anchor: Path,
    texts: Mapping[str, Sources],
    heldout: Mapping[str, Sources],
    out: Path,
    *,
    top_k: int,
    config: TrainConfig,
    part: JointPart = "whole",
    resume: bool = False,
    quiet: bool = False,
) -> Trained:
    """A mixture trained on everybody's text together: what nobody may do, for comparison.

    It has as many experts as there are ``texts`` (public text is one of them), all of them copies
    of the anchor's block, and a router that begins at random. Windows are drawn from all texts in
    equal shares. ``out`` becomes a ``FlexOlmoForCausalLM`` checkpoint. With ``part="experts"`` only
    experts and router are trained, which is all that owners who work apart can change.

    Source: Shi et al. 2025, section 4.3, "unrestricted MoE", which does not say how many experts
    or how many of them run; sparse upcycling is Komatsuzaki et al. 2023 (arXiv 2212.05055).

    Raises:
        as ``make_once``, and ConfigError: ``heldout`` names other texts, or a ``top_k`` too large.
    """
    names = sorted(texts)
    if sorted(heldout) != names:
        raise ConfigError("every text needs held-out text, and nothing else does", where="heldout")
    _check_top_k(top_k, len(names))
    asked = dict(texts) | {f"{name}/heldout": heldout[name] for name in names}
    question = Question("joint", anchor, config, asked, {"top_k": top_k, "part": part})

    def begin(start: Start) -> FlexOlmoForCausalLM:
        state = start.backbone.state_dict()
        model = _mixture(start.backbone, state, [state] * len(names), top_k, config.seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part == "whole" or ".mlp." in name)
        return model

    pairs = [(texts[name], heldout[name]) for name in names]
    return make_once(
        question, out, _work(anchor, begin, pairs, config, out.name, resume, quiet), resume=resume
    )


def train_btx(
    anchor: Path,
    dense: Sequence[Path],
    public: Sources,
    heldout: Sources,
    out: Path,
    *,
    top_k: int,
    config: TrainConfig,
    resume: bool = False,
    quiet: bool = False,
) -> Trained:
    """Branch-train-mix: dense models become a mixture, which is then trained on public text.

    The experts are the anchor's block and each dense model's (folders of ``continue_dense``);
    everything else is the mean of all those models; the router begins at random.

    Source: Sukhbaatar et al. 2024 (BTX, arXiv 2403.07816), where the seed model is one of the
    experts too. There, training after the merge is on everybody's text; here, as in Shi et al.
    2025, section 4.3, on public text, the only one there is. BTX takes the softmax over the chosen
    logits alone; ours differs by a factor, which the norm behind the block takes out.

    Raises:
        as ``make_once``, and ConfigError: a ``top_k`` too large, FormatError: no dense models.
    """
    _check_top_k(top_k, 1 + len(dense))
    made_of: list[JsonValue] = [digest_file(folder / PAPER) for folder in dense]
    options: dict[str, JsonValue] = {"top_k": top_k, "dense": made_of}
    texts = {"public": public, "heldout": heldout}
    question = Question("btx", anchor, config, texts, options)

    def begin(start: Start) -> FlexOlmoForCausalLM:
        others = [load_dense(folder, dtype=torch.float32).state_dict() for folder in dense]
        states = [{n: t.cpu() for n, t in start.backbone.state_dict().items()}, *others]
        return _mixture(start.backbone, _mean(states), states, top_k, config.seed)

    work = _work(anchor, begin, [(public, heldout)], config, out.name, resume, quiet)
    return make_once(question, out, work, resume=resume)


def _check_top_k(top_k: int, experts: int) -> None:
    if not 0 < top_k <= experts:
        raise ConfigError(f"{top_k} of {experts} experts cannot run", where="top_k")


def _mean(states: Sequence[State]) -> State:
    """The mean of each tensor. In float64, so that the mean of equal ones is exactly they."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).float()
        for name in states[0]
    }


def _mixture(
    anchor: Olmo2ForCausalLM, shared: State, experts: Sequence[State], top_k: int, seed: int
) -> FlexOlmoForCausalLM:
    """A stock mixture of these dense models' blocks; its router is stock too, drawn by the seed."""
    facts = {key: value for key, value in anchor.config.to_dict().items() if key not in _NOT_SHARED}
    config = FlexOlmoConfig(
        **facts,
        num_experts=len(experts),
        num_experts_per_tok=top_k,
        norm_topk_prob=False,
        router_aux_loss_coef=BALANCE_WEIGHT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FlexOlmoForCausalLM(config).float()
    state = {name: tensor for name, tensor in shared.items() if ".mlp." not in name}
    for layer in range(config.num_hidden_layers):
        names = [OLMO2.dense(layer, matrix) for matrix in MATRICES]
        gate, up, down = (torch.stack([one[name] for one in experts]) for name in names)
        into = f"model.layers.{layer}.mlp"
        state[f"{into}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
        state[f"{into}.experts.down_proj"] = down
        state[f"{into}.gate.weight"] = model.state_dict()[f"{into}.gate.weight"]
    model.load_state_dict(state)
    # The library's other ways ignore autocast, or copy an expert's weights for every token.
    model.set_experts_implementation("eager")
    return model.to(anchor.device)


def _work(
    anchor: Path,
    begin: Callable[[Start], FlexOlmoForCausalLM],
    texts: Sequence[tuple[Sources, Sources]],
    config: TrainConfig,
    title: str,
    resume: bool,
    quiet: bool,
) -> Callable[[Path], tuple[Outcome, Callable[[Path], None]]]:
    def work(scratch: Path) -> tuple[Outcome, Callable[[Path], None]]:
        start = load_start(anchor, config)
        packed = [
            prepare_text(anchor, text, held, config, scratch / "text" / str(number), Skipped())
            for number, (text, held) in enumerate(texts)
        ]
        model = begin(start)
        job = mixture_job(model, packed, config, start, title)
        outcome = Loop(job, config, scratch, quiet=quiet).run(resume=resume)

        def save(folder: Path) -> None:
            model.eval().save_pretrained(folder)
            link_tokenizer(anchor, folder)

        return outcome, save

    return work


def mixture_job(
    model: FlexOlmoForCausalLM,
    texts: Sequence[tuple[PackedText, PackedText]],
    config: TrainConfig,
    start: Start,
    title: str,
) -> Job:
    """What wants a gradient is trained, on all texts in turn; judged by their mean bits per byte.

    Trap: the load-balancing loss counts within a micro-batch, so their size changes it a little.
    """
    batches = UnionBatches([train for train, _ in texts], config.batch.windows, config.seed)
    backbone: Any = model
    # How many tokens an expert gets differs every time: nothing for a compiler.
    compute = replace(start.compute, compiled=False)
    decoder = compute.decoder(backbone)
    logits: list[Any] = []

    def watched(**inputs: Any) -> Any:
        output = decoder(**inputs, output_router_logits=True)
        logits.append(output.router_logits)
        return output

    def losses(step: int) -> Iterator[Tensor]:
        for inputs_BT, targets_BT, weight in batches.micro(step, config, compute):
            with compute.autocast():
                loss = training_loss(backbone, inputs_BT, targets_BT, watched)
            shape = model.config
            balance = load_balancing_loss_func(
                logits.pop(), shape.num_experts, shape.num_experts_per_tok
            )
            yield weight * (loss + BALANCE_WEIGHT * balance)

    def judge() -> float:
        tokens = config.budget.judge_tokens
        bits = [
            judge_backbone(backbone, text, tokens, precision=compute.autocast()).bits_per_byte
            for _, text in texts
        ]
        return sum(bits) / len(bits)

    return Job(
        title=title,
        parameters={name: p for name, p in model.named_parameters() if p.requires_grad},
        losses=losses,
        judge=judge,
        tokens_per_step=config.batch.windows * config.data.window_tokens,
        num_steps=start.steps,
    )


class UnionBatches:
    """Windows of several texts, one of each in turn: any step's, from the step's number alone."""

    def __init__(self, texts: Sequence[PackedText], windows: int, seed: int) -> None:
        self.texts, self.windows = texts, windows
        self._samplers = [text.sampler(seed + number) for number, text in enumerate(texts)]

    def micro(
        self, step: int, config: TrainConfig, compute: Compute
    ) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Inputs, targets (-100: nothing to predict), and the share of the step's targets."""
        tokens, targets = self.step(step)
        total = int((targets >= 0).sum())
        size = config.batch.micro_windows or len(tokens)
        for at in range(0, len(tokens), size):
            part = slice(at, at + size)
            held = int((targets[part] >= 0).sum())
            if held == 0:  # a text's last window: the mean of no target is no number
                continue
            yield (
                torch.from_numpy(tokens[part, :-1].copy()).to(compute.device),
                torch.from_numpy(targets[part]).to(compute.device),
                held / total,
            )

    def step(self, step: int) -> tuple[Any, Any]:
        """Tokens ``[B, T + 1]`` and targets ``[B, T]`` of one step."""
        parts = []
        for number in range(step * self.windows, (step + 1) * self.windows):
            turn, which = divmod(number, len(self.texts))
            chosen = self._samplers[which].indices(turn, 1)
            parts.append(self.texts[which].windows(chosen))
        tokens = np.concatenate([part.tokens for part in parts])
        documents = np.concatenate([part.documents for part in parts])
        return tokens, np.where(documents[:, 1:] >= 0, tokens[:, 1:], -100)

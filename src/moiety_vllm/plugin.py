"""Each request's mask, inside vLLM's worker processes: applied to every router's logits.

Legend: N token of the step, E expert, R request of the step.

Two hooks. The gate of every mixture gives minus infinity to the logits of experts that a token's
request may not use: softmax, top-k and everything after see the model that never had them. And
experts are picked as moiety picks them: ties alike (a text's first token ties all of them), and one
without weight gives its place to the anchor, so that a forbidden one is not even multiplied with:
nought times what is no number would be none.

vLLM loads plugins in every process it starts, and goes on without one that fails. So whoever starts
an engine calls ``moiety_check`` before any request. A request's data never raises in here, which
would end the engine for everybody: what is not understood may use the anchor and nothing else.

No ``from __future__ import annotations``: torch reads an operator's schema from live annotations.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EXPERTS = "MOIETY_VLLM_EXPERTS"
"""The environment's word for how many experts there are; without it the plugin does nothing."""

KEY = "experts"
"""Where a request's sampling parameters carry its slots, in ``extra_args``."""

ANCHOR = 0


class Masks:
    """Which expert each token of the step under way may not use. One object a process."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.withdrawn: set[int] = set()
        self.gates = 0
        self.uses = 0
        self.table_NE: Tensor | None = None
        self._filled = 0

    def begin(self, runner: Any) -> None:
        """Writes the table for the step that ``runner`` is about to run. Never raises."""
        if self.table_NE is None:
            # Made once and changed in place: a captured graph keeps reading the same memory.
            shape = (int(runner.max_num_tokens), self.experts)
            self.table_NE = torch.ones(shape, dtype=torch.bool, device=runner.device)
            self._close(self.table_NE)
        try:
            count = runner.input_batch.num_reqs
            parameters = [
                runner.requests[name].sampling_params for name in runner.input_batch.req_ids[:count]
            ]
            lengths_R = torch.from_numpy(runner.query_start_loc.np[: count + 1].copy()).diff()
            self._write(torch.stack([self._row(one) for one in parameters]), lengths_R)
        except Exception:
            self._close(self.table_NE)

    def _write(self, row_RE: Tensor, lengths_R: Tensor) -> None:
        assert self.table_NE is not None
        step_NE = row_RE.repeat_interleave(lengths_R, dim=0)
        used = len(step_NE)
        self.table_NE[:used].copy_(step_NE)
        if used < self._filled:
            self._close(self.table_NE[used : self._filled])
        self._filled = used

    def _row(self, parameters: Any) -> Tensor:
        """What one request may not use, ``[E]``."""
        slots = (getattr(parameters, "extra_args", None) or {}).get(KEY)
        row_E = torch.ones(self.experts, dtype=torch.bool)
        if isinstance(slots, list) and all(type(slot) is int for slot in slots):
            known = [slot for slot in slots if 0 <= slot < self.experts]
            if known == slots and not self.withdrawn & set(slots):
                row_E[slots] = False
        row_E[ANCHOR] = False
        return row_E

    def _close(self, table_NE: Tensor) -> None:
        table_NE.fill_(True)
        table_NE[:, ANCHOR] = False

    def apply(self, logits_NE: Tensor) -> Tensor:
        """Minus infinity where a token's request may not go."""
        self.uses += 1
        if self.table_NE is None:
            return logits_NE.clone()
        return logits_NE.masked_fill(self.table_NE[: len(logits_NE)], -torch.inf)


_masks: Masks | None = None


def register() -> None:
    """The entry point: hooks itself into vLLM, once a process, where the environment says so."""
    global _masks
    if _masks is not None or not os.environ.get(EXPERTS):
        return
    _masks = Masks(int(os.environ[EXPERTS]))
    _hook_operator(_masks)
    _hook_runner(_masks)
    _hook_gate(_masks)
    _hook_router()


def _hook_operator(masks: Masks) -> None:
    """The mask as an operator that a compiler does not look into."""
    from vllm.utils.torch_utils import direct_register_custom_op

    def moiety_mask(logits: torch.Tensor) -> torch.Tensor:
        return masks.apply(logits)

    def shape_only(logits: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(logits)

    direct_register_custom_op("moiety_mask", moiety_mask, fake_impl=shape_only)


def _hook_runner(masks: Masks) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    inner: Callable[..., Any] = GPUModelRunner._model_forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        masks.begin(self)
        return inner(self, *args, **kwargs)

    GPUModelRunner._model_forward = forward


def _hook_gate(masks: Masks) -> None:
    from vllm.model_executor.models.transformers.fusers.moe import MoEBlockFuser

    inner: Callable[..., Any] = MoEBlockFuser.gate

    def gate(self: Any, *args: Any, **kwargs: Any) -> Any:
        linear = inner(self, *args, **kwargs)
        plain = linear.forward

        def masked(hidden: Tensor) -> Any:
            logits_NE, rest = plain(hidden)
            return torch.ops.vllm.moiety_mask(logits_NE), rest

        linear.forward = masked
        masks.gates += 1
        return linear

    MoEBlockFuser.gate = gate


def _hook_router() -> None:
    """Softmax over all, the top k of it, not scaled up again, as in our own mixture."""
    from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter

    def select(
        self: Any,
        hidden_states: Tensor,
        router_logits: Tensor,
        topk_indices_dtype: torch.dtype | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        kept = router_logits.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        ids = kept.indices.masked_fill(kept.values == 0, ANCHOR)
        return kept.values, ids.to(topk_indices_dtype or torch.int32)

    FusedMoERouter.select_experts = select


class WorkerExtension:
    """What an engine asks its worker processes, by ``collective_rpc``."""

    def moiety_check(self) -> str:
        """What is wrong with the hooks, after a first request was run; empty when nothing is."""
        layers = len(self.vllm_config.compilation_config.static_all_moe_layers)  # type: ignore[attr-defined]
        if _masks is None:
            return "the plugin was not loaded"
        if not layers or _masks.gates != layers:
            return f"{_masks.gates} gates of {layers} mixtures are masked"
        if _masks.uses < layers or _masks.table_NE is None:
            return "the model was run without its masks"
        if self.vllm_config.parallel_config.use_sequence_parallel_moe:  # type: ignore[attr-defined]
            return "tokens are spread over devices, which a mask cannot follow"
        return ""

    def moiety_withdraw(self, slots: list[int]) -> None:
        """From the next step on these are nobody's; when this returns no earlier step runs."""
        if _masks is not None:
            _masks.withdrawn |= set(slots)

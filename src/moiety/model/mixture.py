"""A merged model in the hand: choose experts, generate, score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, Olmo2ForCausalLM, TextStreamer

from moiety.errors import ConfigError
from moiety.model.checkpoint import build_mixture, load_routing
from moiety.model.evidence import Borders, EvidenceCache
from moiety.model.layer import Routing, Witness, begin_pass
from moiety.model.score import token_nats

__all__ = ["Mixture", "Routing", "load_mixture", "load_routing"]


class Mixture:
    """A release loaded for use.

    ``names`` are the experts in slot order; ``names[0]`` is ``"anchor"``, the public model, which
    takes part in every set: it belongs to everybody, and a text no expert knows falls back to it.
    Not safe for concurrent use: the set in force is a property of the model, not of the call.
    """

    def __init__(
        self, backbone: Olmo2ForCausalLM, routing: Routing, names: Sequence[str], tokenizer: Any
    ) -> None:
        self.backbone = backbone
        self.routing = routing
        self.names = list(names)
        self.tokenizer = tokenizer
        backbone.model.register_forward_pre_hook(
            lambda _module, _args, kwargs: begin_pass(routing, kwargs), with_kwargs=True
        )

    @contextmanager
    def only(self, *names: str) -> Iterator[Mixture]:
        """Uses the anchor and the experts named, and nobody else, until the block ends."""
        with self.routing.using(self.slots(names)):
            yield self

    @contextmanager
    def without(self, *names: str) -> Iterator[Mixture]:
        """Uses everybody but the experts named, until the block ends."""
        gone = set(self.slots(names)) - {0}
        with self.routing.using(tuple(s for s in range(len(self.names)) if s not in gone)):
            yield self

    def slots(self, names: Iterable[str]) -> tuple[int, ...]:
        """Slot numbers of the experts named, the anchor's first.

        Raises:
            ConfigError: a name that is not in the roster, with those that are.
        """
        wanted = set(names) | {"anchor"}
        unknown = sorted(wanted - set(self.names))
        if unknown:
            raise ConfigError(
                f"no expert called {', '.join(unknown)} in this release",
                remedy=f"there are: {', '.join(self.names)}",
            )
        return tuple(slot for slot, name in enumerate(self.names) if name in wanted)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        experts: Sequence[Sequence[str]] | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        stream: bool = False,
    ) -> Any:
        """Continues a prompt, or a batch of prompts; returns the continuation(s) alone.

        ``experts`` gives each prompt of a batch its own set. ``temperature`` 0 is greedy.
        ``stream`` prints tokens as they come (one prompt only).
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        inputs = self._encode(prompts)
        config = _generation(self.tokenizer, max_new_tokens, temperature, top_p)
        streamer = None
        if stream:
            # What is printed is what is returned: no special tokens.
            streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with self._each(experts, len(prompts)), torch.random.fork_rng(devices=self._cuda()):
            torch.manual_seed(seed)
            output: Any = self.backbone.generate(
                **inputs,
                generation_config=config,
                past_key_values=EvidenceCache(config=self.backbone.config),
                streamer=streamer,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts[0] if isinstance(prompt, str) else texts

    def score(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor,
        *,
        experts: Sequence[Sequence[str]] | None = None,
    ) -> Tensor:
        """Nats of each next token of packed windows, ``[B, T]`` for ``T + 1`` tokens a window.

        ``documents_BT`` tells which document each token belongs to (-1: padding); evidence starts
        afresh at every border. Targets that are padding get a number too: the caller leaves it out.
        ``experts`` gives each window its own set.
        """
        device = self.backbone.device
        tokens_BT, documents_BT = tokens_BT.to(device), documents_BT.to(device)
        borders = Borders.from_documents(documents_BT[:, :-1])
        with self._each(experts, len(tokens_BT)), self.routing.documents(borders):
            return token_nats(self.backbone, tokens_BT[:, :-1], tokens_BT[:, 1:])

    @contextmanager
    def watching(self, witness: Witness | None = None) -> Iterator[Tensor]:
        """Adds up the routing weight each slot gets at real positions: yields ``[slots]``, double.

        One decision serves all layers, so a position counts once. ``witness`` sees the weights of
        each pass ``[B, T, E]`` as they come, zero at padding.
        """
        shares_S = torch.zeros(len(self.names), dtype=torch.double)
        self.routing.shares_S, self.routing.witness = shares_S, witness
        try:
            yield shares_S
        finally:
            self.routing.shares_S = self.routing.witness = None

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        self.tokenizer.padding_side = "left"
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1)
        if inputs["input_ids"].shape[1] == 0:
            raise ConfigError("the prompt is empty and this tokenizer adds no start token")
        limit = self.backbone.config.max_position_embeddings
        if inputs["input_ids"].shape[1] >= limit:
            raise ConfigError(f"the prompt is longer than the model's {limit} positions")
        device = self.backbone.device
        return {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}

    @contextmanager
    def _each(self, experts: Sequence[Sequence[str]] | None, count: int) -> Iterator[None]:
        if experts is None:
            yield
            return
        if len(experts) != count:
            raise ConfigError(f"{len(experts)} expert sets for a batch of {count}")
        sets = [self.slots(names) for names in experts]
        if len(set(sets)) == 1:
            with self.routing.using(sets[0]):
                yield
            return
        mask_BS = torch.zeros(count, len(self.names), dtype=torch.bool, device=self.backbone.device)
        for row, slots in enumerate(sets):
            mask_BS[row, list(slots)] = True
        union = tuple(sorted(set().union(*sets)))
        with self.routing.using(union, mask_BS):
            yield

    def _cuda(self) -> list[torch.device]:
        return [self.backbone.device] if self.backbone.device.type == "cuda" else []


def _generation(tokenizer: Any, tokens: int, temperature: float, top_p: float) -> GenerationConfig:
    if temperature < 0 or not 0 < top_p <= 1 or tokens < 1:
        raise ConfigError("temperature must be >= 0, top_p in (0, 1], max tokens >= 1")
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=temperature > 0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        **sampling,
    )


def load_mixture(
    folder: Path,
    names: Sequence[str],
    files: Sequence[Path],
    ranks: Sequence[int | None],
    *,
    evidence: Path,
    top_k: int,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Mixture:
    """Loads a release whose roster says: these names, files and ranks, in slot order.

    The caller has read the roster; this function trusts what it is told and checks only that the
    tensors fit the model.

    Raises:
        ConfigError: a device that is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:80]
        raise ConfigError(f"no such device here: {device} ({reason})", remedy="use cpu") from None
    backbone, plan = build_mixture(
        folder,
        list(files),
        list(ranks),
        evidence=evidence,
        top_k=top_k,
        dtype=dtype,
        device=device,
    )
    # The configuration is given: the folder's own is of a type that the library does not know.
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, config=backbone.config)
    return Mixture(backbone, plan, names, tokenizer)

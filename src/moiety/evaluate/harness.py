"""lm-evaluation-harness on a release in the hand, with whichever experts are in force.

Legend: B request, T position, D width, V vocabulary.

The harness loads what ``moiety export`` writes by itself (``--model hf``). This gives it a release
as it is, restricted by ``only`` or ``without``. It needs the extra ``eval`` and is imported by
nobody here::

    from moiety.evaluate.harness import HarnessModel

Source: ``lm_eval.api.model.TemplateLM`` of lm-eval 0.4.13.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from moiety.errors import ConfigError
from moiety.model import Borders, EvidenceCache, Mixture

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(
        "lm-evaluation-harness is not installed", remedy="pip install 'moiety[eval]'"
    ) from error

Pair = tuple[list[int], list[int]]
"""Tokens of a context, never none, and of what is to follow it."""

_MOST_NEW_TOKENS = 256
"""Where a task does not say; the harness's own default."""


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A mixture as the harness wants a model. ``max_tokens``: longest context, default the model's.

    Texts are encoded as the tokenizer does it by default, as the harness does with ``hf``, so both
    can be compared. Every request is a document of its own.

    Trap: which experts are used is a property of the mixture while a request is answered: call the
    harness inside ``with mixture.without(...)``, and do not reuse its cache under another set.
    """

    def __init__(
        self, mixture: Mixture, *, batch_size: int = 16, max_tokens: int | None = None
    ) -> None:
        super().__init__()
        limit: int = mixture.backbone.config.max_position_embeddings
        if batch_size < 1 or not 2 <= (max_tokens or limit) <= limit:
            raise ConfigError(f"batch_size must be 1 or more, max_tokens from 2 to {limit}")
        self.mixture = mixture
        self.tokenizer = mixture.tokenizer
        self.batch_size = batch_size
        self.max_length = max_tokens or limit
        self._device = mixture.backbone.device

    @property
    def eot_token_id(self) -> int:
        """Ends a text."""
        number: int = self.tokenizer.eos_token_id
        return number

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text: what owners' documents were separated by in training."""
        number: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if number is None else number

    @property
    def tokenizer_name(self) -> str:
        """What the harness keys its caches by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any
    ) -> list[int]:
        """Token ids of a text."""
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **special)
        return ids

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token counted once, long ones in pieces.

        Trap: evidence and attention begin afresh in each piece.
        """
        pairs: list[Pair] = []
        owners = []
        for number, (text,) in enumerate(request.args for request in requests):
            # Not the default encoding: it may hold the prefix, which is no part of the text.
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [make_disjoint_window(window) for window in windows]
            pairs += pieces
            owners += [number] * len(pieces)
        sums = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._score(pairs, disable_tqdm), strict=True):
            sums[owner] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_kwargs: Any,
    ) -> list[tuple[float, bool]]:
        answers = self._score([(context, rest) for _, context, rest in requests], disable_tqdm)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _score(self, pairs: Sequence[Pair], quiet: bool) -> list[tuple[float, bool]]:
        """Log-likelihood of what follows each context, and whether it is the greedy choice."""
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        # Long ones first: batches waste little, and memory runs out at once or never.
        order = [n for n, (_, rest) in enumerate(pairs) if rest]
        order.sort(key=lambda n: -len(pairs[n][0]) - len(pairs[n][1]))
        for numbers in tqdm(list(_batches(order, self.batch_size)), disable=quiet, desc="scoring"):
            batch = [pairs[number] for number in numbers]
            for number, answer in zip(numbers, self._score_batch(batch), strict=True):
                answers[number] = answer
        return answers

    def _score_batch(self, batch: Sequence[Pair]) -> list[tuple[float, bool]]:
        if any(len(rest) > self.max_length for _, rest in batch):
            raise ConfigError(f"an answer is longer than the model's {self.max_length} tokens")
        # What does not fit is cut off the beginning of the context.
        rows = [(context + rest)[-(self.max_length + 1) :] for context, rest in batch]
        length = max(map(len, rows)) - 1
        tokens_BT = torch.full((len(rows), length), self.eot_token_id)
        documents_BT = torch.full((len(rows), length), -1)
        for number, row in enumerate(rows):
            tokens_BT[number, : len(row) - 1] = torch.tensor(row[:-1])
            documents_BT[number, : len(row) - 1] = 0
        borders = Borders.from_documents(documents_BT.to(self._device))
        with torch.inference_mode(), self.mixture.routing.documents(borders):
            states_BTD: Tensor = self.mixture.backbone.model(
                input_ids=tokens_BT.to(self._device), use_cache=False
            ).last_hidden_state
            return [
                # The state at a position predicts the token after it.
                self._answer(states_TD[len(row) - 1 - len(rest) : len(row) - 1], rest)
                for states_TD, row, (_, rest) in zip(states_BTD, rows, batch, strict=True)
            ]

    def _answer(self, states_TD: Tensor, rest: list[int]) -> tuple[float, bool]:
        logits_TV = self.mixture.backbone.lm_head(states_TD).float()
        rest_T = torch.tensor(rest, device=logits_TV.device)
        scores_T = logits_TV.log_softmax(-1).gather(1, rest_T[:, None])
        return float(scores_T.double().sum()), bool((logits_TV.argmax(-1) == rest_T).all())

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Continues each context until a stop text, the end of text, or the most tokens."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        batches = [b for group in groups.values() for b in _batches(group, self.batch_size)]
        for numbers in tqdm(batches, disable=disable_tqdm, desc="generating"):
            contexts = [requests[number].args[0] for number in numbers]
            found = self._generate_batch(contexts, requests[numbers[0]].args[1])
            for number, text in zip(numbers, found, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _generate_batch(self, contexts: Sequence[str], wishes: dict[str, Any]) -> list[str]:
        stops = wishes.get("until") or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        config = self._config(wishes)
        room = self.max_length - config.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"{config.max_new_tokens} new tokens leave no room for a context",
                remedy=f"ask for fewer than {self.max_length}",
            )
        rows = [self.tok_encode(text) or [self.prefix_token_id] for text in contexts]
        rows = [row[-room:] for row in rows]
        length = max(map(len, rows))
        tokens_BT = torch.full((len(rows), length), config.pad_token_id)
        mask_BT = torch.zeros(len(rows), length, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens_BT[number, length - len(row) :] = torch.tensor(row)
            mask_BT[number, length - len(row) :] = 1
        output: Any = self.mixture.backbone.generate(
            input_ids=tokens_BT.to(self._device),
            attention_mask=mask_BT.to(self._device),
            generation_config=config,
            past_key_values=EvidenceCache(config=self.mixture.backbone.config),
            stop_strings=stops or None,
            tokenizer=self.tokenizer,
        )
        texts = self.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        return [_cut(text, stops) for text in texts]

    def _config(self, wishes: dict[str, Any]) -> GenerationConfig:
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        most = next((wishes[name] for name in names if wishes.get(name)), _MOST_NEW_TOKENS)
        temperature = float(wishes.get("temperature") or 0.0)
        sampling = wishes.get("do_sample", temperature > 0) and temperature > 0
        how = {name: wishes[name] for name in ("top_p", "top_k") if sampling and name in wishes}
        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=int(most),
            do_sample=sampling,
            eos_token_id=self.eot_token_id,
            pad_token_id=self.eot_token_id if pad is None else pad,
            **(how | {"temperature": temperature} if sampling else {}),
        )


def _batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    for at in range(0, len(numbers), size):
        yield list(numbers[at : at + size])


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop in it."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text

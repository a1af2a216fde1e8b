"""The public sample that goes with an anchor, and the states at which router rows are probed.

Legend: N probe position, T position, D width.
"""

from __future__ import annotations

import gzip
import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Olmo2ForCausalLM

from moiety.bundle import anchors
from moiety.data import PackedText, Skipped, Sources
from moiety.errors import DataError
from moiety.files import digest_bytes
from moiety.model import running_mean
from moiety.tensors import array_plan, write_tensors

SAMPLE_MAX_BYTES = 16 * 2**20
"""Public text shipped with an anchor: enough that an owner's batches rarely repeat it."""

_POSITIONS_PER_WINDOW = 8


def write_sample(sources: Sources, path: Path, skipped: Skipped) -> None:
    """Writes a fair sample of the documents, chosen by hash, in the order of the hash.

    Each line keeps its record, so that the split into train and held-out is the same later.
    """
    chosen: list[tuple[int, str, bytes]] = []
    total = 0
    for document in sources.documents(skipped):
        line = json.dumps({"record": document.record, "text": document.text}, ensure_ascii=False)
        data = line.encode("utf-8") + b"\n"
        name = digest_bytes(data)
        # A heap of negated hashes: the largest hash goes first when the sample is full.
        heapq.heappush(chosen, (-int(name[:15], 16), name, data))
        total += len(data)
        while total > SAMPLE_MAX_BYTES and len(chosen) > 1:
            total -= len(heapq.heappop(chosen)[2])
    if not chosen:
        raise DataError("no public text", where=", ".join(sources.paths))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
    ):
        for _, _, data in sorted(chosen, reverse=True):
            packed.write(data)


def sample_sources(anchor: Path) -> Sources:
    """The anchor's public sample as a source of text."""
    return Sources([str(anchor / anchors.SAMPLE)], record_key="record")


def write_probe(backbone: Olmo2ForCausalLM, text: PackedText, path: Path) -> None:
    """Writes the states that enter each feed-forward block at positions of public text.

    Per layer ``layers.N.token`` (the state itself) and ``layers.N.context`` (its mean over the
    document so far), float32 ``[N, D]``. A router row applied to them says, without running any
    model, how much of public text the row would capture.

    Raises:
        DataError: too little text.
    """
    states = _public_states(backbone, text)
    plans = [array_plan(name, array) for name, array in sorted(states.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, plans)


def _public_states(backbone: Olmo2ForCausalLM, text: PackedText) -> dict[str, np.ndarray[Any, Any]]:
    """Some windows, always the same ones; at most eight positions of each one's first document."""
    states = _ProbeStates(backbone)
    windows = np.random.default_rng(0).permutation(text.num_windows)
    places = np.linspace(8, text.window_tokens - 1, _POSITIONS_PER_WINDOW).astype(int)
    for window in windows[: anchors.PROBE_POSITIONS_MAX // _POSITIONS_PER_WINDOW]:
        one = text.windows([window])
        usable = places[one.documents[0, places] == one.documents[0, 0]]
        if len(usable):
            states.gather(torch.from_numpy(one.tokens[:, :-1]), usable)
    found = {name: np.concatenate(parts) for name, parts in states.parts.items()}
    if not found or min(map(len, found.values())) < anchors.PROBE_POSITIONS_MIN:
        raise DataError(
            "too little public text to tell what its states are",
            remedy="give more public text, or longer documents",
        )
    return found


class _ProbeStates:
    def __init__(self, backbone: Olmo2ForCausalLM) -> None:
        self.backbone = backbone
        self.parts: dict[str, list[np.ndarray[Any, Any]]] = {}

    def gather(self, tokens_BT: Tensor, places: np.ndarray[Any, Any]) -> None:
        hooks = [
            layer.mlp.register_forward_pre_hook(self._keeper(number, places))
            for number, layer in enumerate(self.backbone.model.layers)
        ]
        try:
            with torch.inference_mode():
                self.backbone.model(input_ids=tokens_BT.to(self.backbone.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _keeper(self, number: int, places: np.ndarray[Any, Any]) -> Any:
        def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            hidden_BTD = inputs[0].float()
            mean_BTD = running_mean(hidden_BTD)
            for name, states in (("token", hidden_BTD), ("context", mean_BTD)):
                kept = states[0, places].cpu().numpy()
                self.parts.setdefault(f"layers.{number}.{name}", []).append(kept)

        return keep

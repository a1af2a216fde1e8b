"""An owner's dense model: the anchor trained further, by its owner, on the owner's text alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from transformers import Olmo2ForCausalLM

from moiety.data import PackedText, Skipped, Sources
from moiety.errors import StateError
from moiety.model import load_dense
from moiety.train.anchor import dense_job
from moiety.train.config import TrainConfig
from moiety.train.domains import Rows, domain_rows
from moiety.train.expert import frozen_digest
from moiety.train.loop import Loop, Outcome
from moiety.train.texts import prepare_text, prepare_texts
from moiety.train.trained import (
    Question,
    Trained,
    link_tokenizer,
    load_start,
    make_once,
)

Part = Literal["feed-forward", "whole"]


def continue_dense(
    anchor: Path,
    text: Sources,
    heldout: Sources | None,
    out: Path,
    *,
    part: Part,
    config: TrainConfig,
    resume: bool = False,
    quiet: bool = False,
) -> Trained:
    """Trains the anchor further on one text; ``out`` becomes a dense checkpoint with its tokenizer.

    ``part`` says what of it changes: the feed-forward blocks, or everything. With the first ``out``
    also holds the rows by which ``merge_recipe`` can route to those blocks: the mean states of the
    text and of the public sample. ``heldout`` None holds a share of the text back.

    Source: Shi et al. 2025, sections 4.3 and A.1, dense continued pretraining from the public
    model, on which soups, BTM, BTX and prompt routing are built; the blocks alone are their "no
    training to coordinate" (table 1).

    Raises:
        as ``make_once``, and StateError: a frozen tensor changed.
    """
    texts = {"text": text} | ({} if heldout is None else {"heldout": heldout})
    question = Question("dense", anchor, config, texts, {"part": part})

    def work(scratch: Path) -> tuple[Outcome, Callable[[Path], None]]:
        start = load_start(anchor, config)
        backbone = start.backbone
        own, own_heldout = prepare_text(
            anchor, text, heldout, config, scratch / "text" / "own", Skipped()
        )
        if part == "feed-forward":
            only_blocks(backbone)
        frozen = frozen_digest(backbone)
        job = dense_job(
            backbone, own, own_heldout, config, start.compute, start.steps, title=out.name
        )
        outcome = Loop(job, config, scratch, quiet=quiet).run(resume=resume)
        if frozen_digest(backbone) != frozen:
            raise StateError("a frozen tensor changed during training", where=scratch)

        def save(folder: Path) -> None:
            backbone.save_pretrained(folder)
            link_tokenizer(anchor, folder)
            if part == "feed-forward":
                public = prepare_texts(
                    anchor, text, heldout, config, scratch / "text", Skipped()
                ).public
                _write_domain_rows(anchor, folder, own, public, start.compute.device)

        return outcome, save

    return make_once(question, out, work, resume=resume)


def only_blocks(backbone: Olmo2ForCausalLM) -> None:
    """Freezes everything but the feed-forward blocks."""
    backbone.requires_grad_(False)
    for layer in backbone.model.layers:
        layer.mlp.requires_grad_(True)


def _write_domain_rows(
    anchor: Path, folder: Path, own: PackedText, public: PackedText, device: str
) -> None:
    base = load_dense(anchor, dtype=torch.float32, device=device)
    own_LD, public_LD = domain_rows(base, own), domain_rows(base, public)
    Rows(own_LD, public_LD, torch.zeros(len(own_LD))).save(folder)

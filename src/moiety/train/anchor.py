"""Anchors: trained from scratch on public text, or an existing checkpoint taken as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, Olmo2ForCausalLM, PreTrainedTokenizerFast

from moiety.bundle import anchors
from moiety.data import (
    PackedText,
    Skipped,
    Sources,
    load_tokenizer,
    pack_split,
)
from moiety.data import tokenizer as tokenizing
from moiety.errors import ConfigError, StateError
from moiety.files import link_or_copy, new_folder, write_atomic
from moiety.model import load_dense, training_loss
from moiety.train.batches import Shares, StepBatches, whole_steps
from moiety.train.compute import Compute, resolve_compute
from moiety.train.config import BudgetConfig, TrainConfig
from moiety.train.judge import judge_backbone
from moiety.train.loop import Job, Loop, Outcome
from moiety.train.presets import PRESETS, Preset, PresetName
from moiety.train.sample import sample_sources, write_probe, write_sample
from moiety.train.stopping import resumable

ANCHOR_EPOCHS = 3
"""Passes over the public text by default: a small model still gains in the third."""

PROBE_WINDOW_TOKENS = 256

_TOKENIZER_TEXT_BYTES = 64 * 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class MadeAnchor:
    """What ``new_anchor`` or ``import_anchor`` made. Bits per byte are of held-out public text."""

    folder: Path
    digest: str
    parameters: int
    bits_per_byte: float
    skipped: Skipped
    outcome: Outcome | None


def new_anchor(
    sources: Sources,
    out: Path,
    *,
    preset: PresetName = "tiny",
    config: TrainConfig | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> MadeAnchor:
    """Trains a tokenizer and an OLMo 2 decoder from scratch on public text.

    Unfinished work lies in ``OUT.training/`` until the anchor stands.

    Raises:
        StateError: ``out`` exists, or unfinished work lies there and ``resume`` was not asked for.
        DataError: text that cannot be read, or too little of it.
        KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; ``resume`` goes on.
    """
    size = PRESETS[preset]
    config = config or size.train_config(seed=0)
    work = _work_folder(out, resume)
    skipped = Skipped()
    with resumable():
        train, heldout = _prepare_text(sources, size, config, work, skipped)
        backbone, outcome = _train_dense(size, config, work, train, heldout, resume, quiet)
        with new_folder(out) as folder:
            backbone.save_pretrained(folder)
            _save_tokenizer(work, folder, config.data.window_tokens)
            digest, bits = _finish(folder, sources, backbone, Skipped())
    shutil.rmtree(work)
    count = sum(p.numel() for p in backbone.parameters())
    return MadeAnchor(out, digest, count, bits, skipped, outcome)


def import_anchor(checkpoint: str, public: Sources, out: Path) -> MadeAnchor:
    """Takes a local or hub OLMo 2 checkpoint as it is and adds the public sample and the digests.

    The checkpoint's files are linked where the file system allows.

    Raises:
        ConfigError: not there, not OLMo 2, or pickled weights.
    """
    source = _find_checkpoint(checkpoint)
    skipped = Skipped()
    with new_folder(out) as folder:
        for pattern in _CHECKPOINT_FILES:
            for path in sorted(source.glob(pattern)):
                link_or_copy(path, folder / path.name)
        if not list(folder.glob("*.safetensors")):
            raise ConfigError(
                "no safetensors weights in it", where=source, remedy="convert it to safetensors"
            )
        backbone = load_dense(folder)
        digest, bits = _finish(folder, public, backbone, skipped)
    count = sum(p.numel() for p in backbone.parameters())
    return MadeAnchor(out, digest, count, bits, skipped, None)


def _work_folder(out: Path, resume: bool) -> Path:
    if out.exists():
        raise StateError("exists already", where=out, remedy="name a new folder, or remove it")
    work = out.with_name(out.name + ".training")
    if work.exists() and not resume:
        raise StateError(
            "unfinished work lies here", where=work, remedy="go on with --resume, or remove it"
        )
    work.mkdir(parents=True, exist_ok=True)
    return work


def _prepare_text(
    sources: Sources, size: Preset, config: TrainConfig, work: Path, skipped: Skipped
) -> tuple[PackedText, PackedText]:
    if not (work / "text").exists():
        if not (work / "tokenizer.json").exists():
            tokenizer = tokenizing.train_tokenizer(_some_text(sources), size.vocab)
            write_atomic(work / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        tokenizer, separator = _load_own_tokenizer(work)
        pack_split(
            sources.documents(skipped),
            tokenizer,
            work / "text",
            window_tokens=config.data.window_tokens,
            separator=separator,
            heldout_fraction=config.data.heldout_fraction,
        )
    return PackedText.open(work / "text" / "train"), PackedText.open(work / "text" / "heldout")


def _some_text(sources: Sources) -> Iterator[str]:
    total = 0
    for document in sources.documents(Skipped()):
        yield document.text
        total += len(document.text)
        if total > _TOKENIZER_TEXT_BYTES:
            return


def _train_dense(
    size: Preset,
    config: TrainConfig,
    work: Path,
    train: PackedText,
    heldout: PackedText,
    resume: bool,
    quiet: bool,
) -> tuple[Olmo2ForCausalLM, Outcome]:
    tokens = config.budget.tokens or ANCHOR_EPOCHS * train.num_tokens
    steps = whole_steps(tokens, config.batch.windows, train.window_tokens)
    compute = resolve_compute(config.compute, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        shape = size.model_config(
            separator=train.separator, pad=1, max_positions=4 * train.window_tokens
        )
        backbone = Olmo2ForCausalLM(shape).to(compute.device)
    job = dense_job(backbone, train, heldout, config, compute, steps)
    outcome = Loop(job, config, work, quiet=quiet).run(resume=resume)
    return backbone.eval(), outcome


def dense_job(
    backbone: Olmo2ForCausalLM,
    train: PackedText,
    heldout: PackedText,
    config: TrainConfig,
    compute: Compute,
    steps: int,
    *,
    title: str = "anchor",
) -> Job:
    """Everything that is not frozen is trained, on one kind of text."""
    batches = StepBatches(train, None, Shares(config.batch.windows), config.seed)
    decoder = compute.decoder(backbone)

    def losses(step: int) -> Iterator[Tensor]:
        for batch in batches.micro(step, config.batch.micro_windows, compute.device):
            with compute.autocast():
                loss = training_loss(backbone, batch.inputs_BT, batch.targets_BT, decoder)
            yield loss * batch.weight

    def judge() -> float:
        tokens = config.budget.judge_tokens
        return judge_backbone(backbone, heldout, tokens, precision=compute.autocast()).bits_per_byte

    return Job(
        title=title,
        parameters={n: p for n, p in backbone.named_parameters() if p.requires_grad},
        losses=losses,
        judge=judge,
        tokens_per_step=config.batch.windows * train.window_tokens,
        num_steps=steps,
    )


def _load_own_tokenizer(work: Path) -> tuple[Tokenizer, int]:
    (work / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}\n', "utf-8")
    return load_tokenizer(work)


def _save_tokenizer(work: Path, folder: Path, window_tokens: int) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=4 * window_tokens,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def _finish(
    folder: Path, public: Sources, backbone: Olmo2ForCausalLM, skipped: Skipped
) -> tuple[str, float]:
    """Adds the public sample, the probe and the paper.

    Returns:
        the anchor's digest, and bits per byte on the held-out part of the sample.
    """
    config = backbone.config
    if not (folder / "generation_config.json").exists():
        GenerationConfig(
            eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        ).save_pretrained(folder)
    write_sample(public, folder / anchors.SAMPLE, skipped)
    tokenizer, separator = load_tokenizer(folder)
    with TemporaryDirectory() as scratch:
        _, heldout = pack_split(
            sample_sources(folder).documents(Skipped()),
            tokenizer,
            Path(scratch) / "text",
            window_tokens=min(PROBE_WINDOW_TOKENS, config.max_position_embeddings),
            separator=separator,
        )
        write_probe(heldout, folder / anchors.PROBE)
        bits = judge_backbone(backbone, heldout, BudgetConfig().final_tokens).bits_per_byte
    return anchors.write_anchor_paper(folder, family="olmo2"), bits


def _find_checkpoint(name: str) -> Path:
    """A local folder, or the files of a hub model, fetched because the name asks for it."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    hub_name = name.removeprefix("hf:")
    if not _HUB_ID.fullmatch(hub_name) or path.parent.is_dir():
        raise ConfigError("no such folder", where=name, remedy="or name a hub model: owner/name")
    try:
        return Path(snapshot_download(hub_name, allow_patterns=list(_CHECKPOINT_FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"no such folder, and the hub does not give it: {type(error).__name__}", where=name
        ) from error

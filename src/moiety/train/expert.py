"""An owner's expert: trained at home, beside a frozen anchor, on text that never leaves the run.

Legend: B window, T position.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from transformers import Olmo2ForCausalLM

from moiety.bundle import anchors, papers
from moiety.data import DocumentNats, PackedText, Skipped, Sources
from moiety.errors import ConfigError, InputError, StateError, TrustError
from moiety.family import owner_problem
from moiety.files import canonical_json, digest_file, parse_json, read_limited, write_atomic
from moiety.model import load_dense, training_loss
from moiety.privacy import Ledger
from moiety.tensors import array_plan, write_tensors
from moiety.train.batches import StepBatches, whole_steps, window_shares
from moiety.train.canaries import CANARIES_PAPER, open_canaries, planted_records
from moiety.train.compute import Compute, resolve_compute
from moiety.train.config import TrainConfig
from moiety.train.judge import judge_backbone
from moiety.train.loop import Job, Loop, Outcome
from moiety.train.pair import Pair
from moiety.train.private import PrivateSteps, guarantee_of, open_ledger
from moiety.train.stopping import resumable
from moiety.train.table import evidence_table, private_table
from moiety.train.texts import Texts, prepare_texts

OWN_EPOCHS = 3
"""Most passes over the owner's text by default; held-out loss ends training sooner."""

TOKENS_PER_PARAMETER = 0.17
"""Most training tokens by default, per parameter of the anchor."""

RUN_PAPER = "run.json"
START_PAPER = "start.json"

_BEGUN_WITH = (
    *("text/own", "text/public", "text", CANARIES_PAPER, "ledger.json", "noise.secret"),
    START_PAPER,
)
"""What a run's folder gets before the first step."""


@dataclass(frozen=True)
class ExpertPlan:
    """What an owner asked for. ``heldout`` is text to judge on instead of a share of the own."""

    anchor: Path
    sources: Sources
    owner: str
    out: Path
    config: TrainConfig
    heldout: Sources | None = None


@dataclass(frozen=True)
class TrainedExpert:
    """A finished run."""

    folder: Path
    paper: papers.RunPaper
    skipped: Skipped
    canaries: papers.Canaries | None = None


def train_expert(plan: ExpertPlan, *, resume: bool = False, quiet: bool = False) -> TrainedExpert:
    """Trains one owner's expert against an anchor; everything it needs and makes stays in ``out``.

    Raises:
        ConfigError: an owner name that cannot be one, settings that do not fit the anchor.
        StateError: ``out`` holds another run, or this one is not resumed as it was begun.
        DataError: text that cannot be read, or too little of it.
        TrustError: the anchor is not what its paper says.
        KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; ``resume`` goes on.
    """
    problem = owner_problem(plan.owner)
    if problem:
        raise ConfigError(f"not an owner's name: {plan.owner!r}", remedy=problem)
    anchor = anchors.verify_anchor(plan.anchor)
    rank, paper = plan.config.pair.rank, anchor.paper
    if rank is not None and rank > min(paper.width, paper.hidden):
        raise ConfigError(f"rank {rank} is larger than the anchor's matrices", where="pair.rank")
    with _own_folder(plan.out), resumable():
        _check_start(plan, anchor.digest, resume)
        skipped = Skipped()
        canaries = open_canaries(plan.out, plan.anchor, anchor.digest, plan.owner, plan.config)
        texts = prepare_texts(
            plan.anchor,
            plan.sources,
            plan.heldout,
            plan.config,
            plan.out / "text",
            skipped,
            planted_records(canaries),
        )
        run = _train(plan, anchor, texts, resume, quiet)
        return TrainedExpert(plan.out, run, skipped, canaries)


def _train(
    plan: ExpertPlan, anchor: anchors.Anchor, texts: Texts, resume: bool, quiet: bool
) -> papers.RunPaper:
    config = plan.config
    tokens = config.budget.tokens or default_tokens(texts.own, anchor.paper, config)
    steps = whole_steps(tokens, config.batch.windows, config.data.window_tokens)
    private = config.privacy.epsilon is not None
    ledger = open_ledger(plan.out, config, texts.own, steps) if private else None
    compute = resolve_compute(config.compute, steps)
    backbone = load_dense(plan.anchor, dtype=torch.float32, device=compute.device)
    if config.data.window_tokens > backbone.config.max_position_embeddings:
        raise ConfigError("longer than the anchor's positions", where="data.window_tokens")
    before = _judge_both(backbone, None, texts, config, compute)
    vocabulary = backbone.config.vocab_size
    table = (
        evidence_table(texts.own, texts.public, vocabulary)
        if ledger is None
        else private_table(texts.own, texts.public, vocabulary, ledger)
    )
    pair = Pair(backbone, table, rank=config.pair.rank, seed=config.seed)
    compute.prepare_frozen(backbone)
    frozen = frozen_digest(backbone)
    job = expert_job(pair, texts, config, compute, steps, plan.owner, ledger)
    outcome = Loop(job, config, plan.out, quiet=quiet).run(resume=resume)
    if frozen_digest(backbone) != frozen:
        raise StateError("a frozen tensor changed during training", where=plan.out)
    after = _judge_both(backbone, pair, texts, config, compute)
    expert = _write_expert(pair, plan.out / "expert.safetensors")
    result = papers.RunResult(heldout=_bits(before[0], after[0]), public=_bits(before[1], after[1]))
    paper = _run_paper(plan, anchor, texts.facts(), expert, outcome, result, ledger)
    papers.write_paper(plan.out / RUN_PAPER, paper)
    shutil.rmtree(plan.out / "checkpoints", ignore_errors=True)
    return paper


def expert_job(
    pair: Pair,
    texts: Texts,
    config: TrainConfig,
    compute: Compute,
    steps: int,
    title: str,
    ledger: Ledger | None = None,
) -> Job:
    """The pair is trained on own and public text; judged on the owner's held-out text.

    With a ledger it is trained privately.
    """
    batches = StepBatches(texts.own, texts.public, window_shares(config), config.seed)
    fill = None
    if ledger is not None:
        compute = replace(compute, compiled=False)  # compiled code would hide the clipper's tape
        private = PrivateSteps(pair, texts, config, compute, ledger)
        private.check_isolated()
        fill = private.fill
    backbone, decoder = pair.backbone, compute.decoder(pair.backbone)

    def losses(step: int) -> Iterator[Tensor]:
        for batch in batches.micro(step, config.batch.micro_windows, compute.device):
            pair.expect(batch.inputs_BT, batch.documents_BT, batch.even_B)
            with compute.autocast():
                loss = training_loss(backbone, batch.inputs_BT, batch.targets_BT, decoder)
            yield loss * batch.weight

    def judge() -> float:
        tokens = config.budget.judge_tokens
        return _judge(backbone, pair, texts.own_heldout, tokens, compute).bits_per_byte

    return Job(
        title=title,
        parameters=pair.trainable(),
        losses=losses,
        judge=judge,
        tokens_per_step=config.batch.windows * config.data.window_tokens,
        num_steps=steps,
        fill=fill,
        canaries=True,
    )


def frozen_digest(backbone: Olmo2ForCausalLM) -> str:
    """One SHA-256 over every tensor that must not change, by sorted name."""
    state = hashlib.sha256()
    for name, parameter in sorted(backbone.named_parameters()):
        if not parameter.requires_grad:
            state.update(name.encode())
            state.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def default_tokens(own: PackedText, anchor: papers.AnchorPaper, config: TrainConfig) -> int:
    """Training tokens when nobody says: a few passes, bounded by the size of the anchor.

    How many steps a private run made is told, so there a pass follows from the number of records.
    """
    parameters = sum(
        tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1)
        for tensor in anchor.tensors.values()
    )
    tokens = own.num_tokens
    if config.privacy.epsilon is not None:
        windows = own.num_records * config.privacy.max_windows_per_record
        tokens = windows * config.data.window_tokens
    passes = OWN_EPOCHS * tokens / (1 - config.data.public_share)
    return round(min(passes, TOKENS_PER_PARAMETER * parameters))


def _judge(
    backbone: Olmo2ForCausalLM,
    pair: Pair | None,
    text: PackedText,
    max_tokens: int,
    compute: Compute,
) -> DocumentNats:
    before = None if pair is None else pair.expect
    return judge_backbone(backbone, text, max_tokens, before=before, precision=compute.autocast())


def _judge_both(
    backbone: Olmo2ForCausalLM,
    pair: Pair | None,
    texts: Texts,
    config: TrainConfig,
    compute: Compute,
) -> tuple[DocumentNats, DocumentNats]:
    tokens = config.budget.final_tokens
    own, public = (
        _judge(backbone, pair, text, tokens, compute)
        for text in (texts.own_heldout, texts.public_heldout)
    )
    return own, public


def _bits(anchor: DocumentNats, pair: DocumentNats) -> papers.PairBits:
    return papers.PairBits(
        anchor=anchor.bits_per_byte, pair=pair.bits_per_byte, documents=len(anchor.documents)
    )


def _write_expert(pair: Pair, path: Path) -> papers.FileFacts:
    tensors = sorted(pair.expert_tensors().items())
    scratch = path.with_suffix(".partial")
    write_tensors(scratch, [array_plan(name, tensor.numpy()) for name, tensor in tensors])
    scratch.rename(path)
    return papers.FileFacts(bytes=path.stat().st_size, sha256=digest_file(path))


def _run_paper(
    plan: ExpertPlan,
    anchor: anchors.Anchor,
    text: papers.TextFacts,
    expert: papers.FileFacts,
    outcome: Outcome,
    result: papers.RunResult,
    ledger: Ledger | None,
) -> papers.RunPaper:
    promise = digest = None
    if ledger is not None:
        promise = guarantee_of(ledger, plan.config, plan.sources.record_key)
        digest = digest_file(ledger.path)
    return papers.RunPaper(
        family=anchor.paper.family,
        num_layers=anchor.paper.num_layers,
        vocab=anchor.paper.vocab,
        width=anchor.paper.width,
        hidden=anchor.paper.hidden,
        owner=plan.owner,
        anchor=anchor.digest,
        rank=plan.config.pair.rank,
        expert=expert,
        config=plan.config.model_dump(mode="json"),
        seed=plan.config.seed,
        versions={name: version(name) for name in ("moiety", "torch", "transformers")},
        text=text,
        steps=outcome.steps,
        tokens_seen=outcome.tokens_seen,
        seconds=round(outcome.seconds, 1),
        result=result,
        privacy=promise,
        ledger_sha256=digest,
    )


def _check_start(plan: ExpertPlan, anchor_digest: str, resume: bool) -> None:
    """A run's folder belongs to one owner, anchor and text, from its first moment."""
    data = plan.config.data
    start = {
        "format": "moiety.start/1",
        "owner": plan.owner,
        "anchor": anchor_digest,
        "text": _named(plan.sources),
        "heldout": None if plan.heldout is None else _named(plan.heldout),
        "privacy": plan.config.privacy.model_dump(mode="json"),
        "canaries": [data.canaries, data.canary_tokens],
    }
    path = plan.out / START_PAPER
    if (plan.out / RUN_PAPER).exists():
        raise StateError("this run is finished", where=plan.out, remedy="pack it: moiety pack")
    if not path.exists():
        write_atomic(path, canonical_json(start))
        return
    if not resume:
        raise StateError(
            "a run was begun here", where=plan.out, remedy="go on with --resume, or remove it"
        )
    if parse_json(read_limited(path), path) != start:
        raise StateError(
            "this run was begun for another owner, anchor or text, or with another privacy or "
            "other canaries",
            where=plan.out,
            remedy="resume with the same ones, or begin a new run in another folder",
        )


def _named(sources: Sources) -> dict[str, object]:
    return {"paths": [str(path) for path in sources.paths], "key": sources.record_key}


@contextmanager
def _own_folder(out: Path) -> Iterator[None]:
    """One process a run: two would overwrite each other's checkpoints.

    What is refused before it trained leaves nothing, so that the corrected command may begin.
    """
    if out.exists() and not out.is_dir():
        raise StateError("not a folder", where=out)
    new = [path for path in (out / ".lock", out) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)  # private text lies here
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateError("another process is working on this run", where=out) from error
        new = [out / name for name in _BEGUN_WITH if not os.path.lexists(out / name)] + new
        try:
            yield
        except (InputError, TrustError):
            if out / START_PAPER in new and not (out / "logs").exists():
                _remove(new, out)
            raise


def _remove(new: list[Path], out: Path) -> None:
    """Removes what this process made; ``out`` itself only when nothing else is in it."""
    for path in new:
        with suppress(OSError):  # why the run is refused is what must be told
            if path == out:
                path.rmdir()
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

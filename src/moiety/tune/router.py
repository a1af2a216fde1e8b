"""At the coordinator: a strict release, its owners' proxies, and a release tuned on them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moiety.bundle import orders
from moiety.data import Sources
from moiety.errors import ConfigError, PolicyError, StateError
from moiety.files import canonical_json, parse_json, read_limited, write_atomic
from moiety.merge import load_release, open_release, tuned
from moiety.train import TrainConfig, jobs
from moiety.tune.sample import open_sample
from moiety.tune.tables import TunableTables, tune
from moiety.tune.texts import TuningTexts, check_exist, pack_texts

DEFAULT_STEPS = 200
_DEFAULTS = ("optim.learning_rate=0.01", "budget.judge_every=25")
"""A step moves a table by at most a hundredth of its size."""

_START = "start.json"


@dataclass(frozen=True)
class RouterPlan:
    """What a coordinator asked for. ``anchor`` is the release's, with its public sample."""

    release: Path
    anchor: Path
    proxies: Sequence[Path]
    out: Path
    config: TrainConfig
    steps: int = DEFAULT_STEPS


@dataclass(frozen=True)
class TunedRouter:
    """What was written. ``heldout`` has bits per byte before and after."""

    out: Path
    digest_before: str
    digest: str
    names: list[str]
    steps: int
    heldout: tuple[float, float]
    flags: list[str]


def tuning_config(assignments: Sequence[str] = ()) -> TrainConfig:
    """Settings for tuning: the trainer's, with a learning rate for scales and offsets."""
    return TrainConfig().resolve(None, [*_DEFAULTS, *assignments])


def tune_router(plan: RouterPlan, *, resume: bool = False, quiet: bool = False) -> TunedRouter:
    """Trains the tables of a release on its owners' proxies and public text.

    Unfinished work lies in ``OUT.tuning`` and is removed at the end.

    Raises:
        TrustError: release, anchor or proxies do not hold, or do not belong together.
        ConfigError: settings that do not fit the anchor.
        StateError: the release was tuned before, ``out`` exists, or other work lies unfinished.
        KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; ``resume`` goes on.
    """
    digest, proxies, sample = _open(plan)
    papers = {owner: one.proxies for owner, one in proxies.items()}
    digests = {owner: one.digest for owner, one in proxies.items()}
    work = plan.out.absolute().with_name(f"{plan.out.name}.tuning")
    with jobs.resumable():
        _check_start(work, {"release": digest, "proxies": digests}, resume)
        texts = pack_texts(plan.anchor, sample, papers, plan.config, work / "text")
        tables, heldout = _train(plan, texts, work, resume, quiet)
        done = tuned.write_tuned(
            plan.release, plan.out, tables, list(proxies.values()), steps=plan.steps
        )
    shutil.rmtree(work, ignore_errors=True)
    flags = ["nothing was won: the tables are as they were"] if heldout[0] == heldout[1] else []
    flags += [f"{owner}'s proxies are not signed" for owner, one in proxies.items() if not one.key]
    return TunedRouter(
        plan.out, done.digest_before, done.digest, done.names, plan.steps, heldout, flags
    )


def _open(plan: RouterPlan) -> tuple[str, dict[str, orders.VerifiedProxies], Sources]:
    """The release's digest, proxies by owner, and public sample: all of them belong together."""
    if plan.out.exists():
        raise StateError("exists already", where=plan.out, remedy="name a new folder")
    if plan.steps < 1:
        raise ConfigError(f"{plan.steps} steps", where="steps", remedy="give at least 1")
    if plan.config.batch.windows < 2:
        raise ConfigError("a step needs public text and proxies", where="batch.windows")
    release = open_release(plan.release)
    tuned.check_strict(release)
    shape = parse_json(read_limited(plan.release / "config.json"), plan.release)
    if plan.config.data.window_tokens > shape["max_position_embeddings"]:
        raise ConfigError("longer than the anchor's positions", where="data.window_tokens")
    proxies = tuned.check_proxies(release, [orders.verify_proxies(path) for path in plan.proxies])
    anchor, sample = open_sample(plan.anchor)
    if anchor.digest != release.roster.anchor:
        raise PolicyError("not the anchor of this release", where=plan.anchor)
    check_exist({owner: one.proxies for owner, one in proxies.items()}, sample)
    return release.digest, proxies, sample


def _train(
    plan: RouterPlan, texts: TuningTexts, work: Path, resume: bool, quiet: bool
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], tuple[float, float]]:
    """The tables ``[S, V]``, and held-out bits per byte before and after."""
    device = jobs.resolve_compute(plan.config.compute, plan.steps).device
    mixture = load_release(plan.release, device=device)
    frozen = jobs.frozen_digest(mixture.backbone)
    heldout = tune(
        mixture,
        TunableTables(mixture),
        texts,
        plan.config,
        plan.steps,
        work,
        resume=resume,
        quiet=quiet,
    )
    if jobs.frozen_digest(mixture.backbone) != frozen:
        raise StateError("a frozen tensor changed while the router was tuned", where=plan.release)
    return mixture.routing.table_SV.detach().float().cpu().numpy(), heldout


def _check_start(work: Path, facts: dict[str, Any], resume: bool) -> None:
    """Unfinished work belongs to one release and its proxies; the loop checks the settings."""
    start = {"format": "moiety.start/1", **facts}
    path = work / _START
    if not path.exists():
        write_atomic(path, canonical_json(start))
        return
    if not resume:
        raise StateError(
            "a tuning was begun here", where=work, remedy="go on with --resume, or remove it"
        )
    if parse_json(read_limited(path), path) != start:
        raise StateError(
            "this tuning was begun for another release or other proxies",
            where=work,
            remedy="remove it, and begin again",
        )

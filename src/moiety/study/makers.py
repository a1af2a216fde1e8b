"""What a study trains, packs and merges: each through the product's own functions."""

from __future__ import annotations

from moiety.bundle import anchors, pack, signing
from moiety.merge import merge
from moiety.study.places import Study, choose_documents
from moiety.study.plan import PUBLIC
from moiety.study.scores import save_sample, take_sample
from moiety.train import PRESETS, ExpertPlan, new_anchor, resolve_config, train_expert


def make_anchor(study: Study) -> None:
    """The public model from its preset; unfinished work goes on."""
    plan = study.plan.paper.anchor
    start = PRESETS[plan.preset].train_config(plan.seed)
    new_anchor(
        study.sources(PUBLIC, "train"),
        study.anchor,
        preset=plan.preset,
        config=resolve_config(start, None, study.plan.anchor_assignments),
        resume=study.anchor.with_name(f"{study.anchor.name}.training").exists(),
        quiet=True,
    )


def choose_texts(study: Study) -> None:
    """The documents of owners who share files."""
    for owner in study.choosy:
        if not study.chosen(owner).exists():
            choose_documents(study, owner)


def take_samples(study: Study) -> None:
    """The windows that every model is scored on."""
    paper = study.plan.paper
    for text in study.plan.texts:
        sample = take_sample(
            study.anchor,
            study.sources(text, "test"),
            window_tokens=study.plan.config.data.window_tokens,
            max_tokens=paper.eval_tokens,
        )
        save_sample(study.sample(text), sample)


def train_owner(study: Study, seed: int, owner: str) -> None:
    """One owner's expert, as ``moiety train`` makes it."""
    run = study.run(seed, owner)
    heldout = study.sources(owner, "valid")
    own = study.sources(owner, "train")
    plan = ExpertPlan(study.anchor, own, owner, run, study.config(seed), heldout)
    train_expert(plan, resume=run.exists(), quiet=True)


def make_release(study: Study, seed: int) -> None:
    """Keys, bundles and their merge, as ``moiety keys``, ``pack`` and ``merge`` make them."""
    folder, bundles = study.seed(seed), []
    facts = anchors.open_facts(study.anchor)
    for owner in study.plan.owners:
        key, bundle = folder / "keys" / f"{owner}.pem", folder / "bundles" / f"{owner}.expert"
        if not key.exists():
            key.parent.mkdir(parents=True, exist_ok=True)
            signing.new_key(key)
        if not bundle.exists():
            pack(study.run(seed, owner), key, bundle, anchor=facts)
        bundles.append(bundle)
    merge(study.anchor, bundles, study.release(seed))

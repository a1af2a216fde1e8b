"""What a study trains, packs and merges: each through the product's own functions."""

from __future__ import annotations

from moiety.bundle import anchors, pack, signing
from moiety.merge import exporting, merge
from moiety.study.bills import joint_part, joint_tokens, pair_costs
from moiety.study.methods import DENSE
from moiety.study.places import Study, choose_documents
from moiety.study.plan import PUBLIC
from moiety.study.scores import save_sample, take_sample
from moiety.train import PRESETS, ExpertPlan, TrainConfig, baselines, new_anchor, train_expert
from moiety.tune import ProxiesPlan, RouterPlan, choose_proxies, tune_router, tuning_config


def make_anchor(study: Study) -> None:
    """The public model from its preset; unfinished work goes on."""
    plan = study.plan.paper.anchor
    start = PRESETS[plan.preset].train_config(plan.seed)
    new_anchor(
        study.sources(PUBLIC, "train"),
        study.anchor,
        preset=plan.preset,
        config=start.resolve(None, study.plan.anchor_assignments),
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
    merge(study.anchor, bundles, study.release(seed), top_k=study.plan.merged_top_k)


def make_plain(study: Study, seed: int) -> None:
    """The release as ``moiety export`` writes it."""
    exporting.export_plain(study.release(seed), study.plain(seed))


def make_tuned(study: Study, seed: int) -> None:
    """Owners' proxies, and the release tuned on them, as the commands of these names do it."""
    papers = []
    for owner in study.plan.owners:
        paper = study.seed(seed) / "proxies" / f"{owner}.json"
        if not paper.exists():
            paper.parent.mkdir(parents=True, exist_ok=True)
            choose_proxies(ProxiesPlan(study.anchor, study.sources(owner, "train"), owner, paper))
        papers.append(paper)
    out, config = study.tuned(seed), tuning_config([*study.plan.train_assignments, f"seed={seed}"])
    resume = out.with_name(f"{out.name}.tuning").exists()
    # As many tokens as an owner trains on.
    steps = study.plan.paper.owner_tokens // (config.batch.windows * config.data.window_tokens)
    plan = RouterPlan(study.release(seed), study.anchor, papers, out, config, max(1, steps))
    tune_router(plan, resume=resume, quiet=True)


def train_dense(study: Study, seed: int, part: baselines.Part, name: str, owner: str) -> None:
    """One owner's dense model, of which the blocks or everything is trained."""
    baselines.continue_dense(
        study.anchor,
        study.sources(owner, "train"),
        study.sources(owner, "valid"),
        study.trained(seed, name) / owner,
        part=part,
        config=study.config(seed),
        resume=True,
        quiet=True,
    )


def train_recipe(study: Study, seed: int, name: str, owner: str) -> None:
    """One owner's expert as the reference trains it."""
    baselines.train_recipe(
        study.anchor,
        study.sources(owner, "train"),
        study.sources(owner, "valid"),
        study.trained(seed, name) / owner,
        owner=owner,
        rows="random" if name == "recipe-random-rows" else "domain",
        bias=name != "recipe-no-bias",
        config=study.config(seed),
        resume=True,
        quiet=True,
    )


def train_btx(study: Study, seed: int) -> None:
    """The owners' dense models as one mixture, trained on public text."""
    paper = study.plan.paper
    baselines.train_btx(
        study.anchor,
        [study.trained(seed, DENSE) / owner for owner in study.plan.owners],
        study.sources(PUBLIC, "train"),
        study.sources(PUBLIC, "valid"),
        study.trained(seed, "btx"),
        top_k=study.plan.trained_top_k,
        config=_budget(study, seed, paper.btx_tokens or paper.owner_tokens),
        resume=True,
        quiet=True,
    )


def train_joint(study: Study, seed: int, name: str, times: int) -> None:
    """A mixture trained on everybody's text at so many times the owners' training FLOPs."""
    texts, part = study.plan.texts, joint_part(name)
    flops = times * sum(pair.training_flops for pair in pair_costs(study, seed))
    baselines.train_joint(
        study.anchor,
        {text: study.sources(text, "train") for text in texts},
        {text: study.sources(text, "valid") for text in texts},
        study.trained(seed, name),
        top_k=study.plan.trained_top_k,
        config=_budget(study, seed, joint_tokens(study, flops, part)),
        part=part,
        resume=True,
        quiet=True,
    )


def _budget(study: Study, seed: int, tokens: int) -> TrainConfig:
    return study.config(seed).resolve(None, [f"budget.tokens={tokens}"])

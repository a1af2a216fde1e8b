"""What each row of the table takes: FLOPs of training and of a token, parameters."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from transformers import FlexOlmoConfig, Olmo2Config

from moiety.baselines import costs, likelihood
from moiety.bundle import papers
from moiety.errors import FormatError
from moiety.files import parse_json, read_limited
from moiety.study.methods import DENSE, Row
from moiety.study.paper import RowCost
from moiety.study.places import Study
from moiety.train import baselines


class Bills:
    """Costs of a study's rows, from the anchor's sizes and the tokens that each training saw."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.sizes = sizes_of(study)
        self.experts = len(study.plan.owners) + 1

    def of(self, row: Row) -> RowCost | None:
        """Training is the mean over seeds; None where what was trained is no longer there.

        None, too, for the price of removal, which is another model on every text.
        """
        if row.method == "removal":
            return None
        try:
            bills = [self._bill(row, seed) for seed in self.study.plan.paper.seeds]
        except FormatError:
            return None
        return RowCost(
            training_flops=sum(bill.training_flops for bill in bills) / len(bills),
            inference_flops_per_token=float(bills[0].inference_flops_per_token),
            parameters=bills[0].parameters,
        )

    def _bill(self, row: Row, seed: int) -> costs.Cost:
        method, plan = row.method, self.study.plan
        mixture = partial(costs.mixture_cost, self.sizes, experts=self.experts)
        if method in ("oracle", "btm-pairs") or method.startswith("moiety"):
            return self._of_pairs(row, seed)
        if method.startswith("recipe"):
            seen_by = self._tokens(seed, method)
            pairs = [costs.pair_cost(self.sizes, n, rows=2) for n in seen_by]
            return mixture(top_k=plan.merged_top_k, before=pairs)
        if method == "no-coordination":
            blocks = self._dense(seed, "dense-ff")
            return mixture(top_k=plan.merged_top_k, before=blocks)
        if method.startswith("joint"):
            seen = baselines.read_trained(self.study.trained(seed, method)).tokens_seen
            return mixture(top_k=plan.trained_top_k, tokens=seen, part=joint_part(method))
        if method == "btx":
            seen = baselines.read_trained(self.study.trained(seed, method)).tokens_seen
            return mixture(top_k=plan.trained_top_k, tokens=seen, before=self._dense(seed, DENSE))
        if method in ("dense-ff", "dense-whole"):
            owner = row.name.removeprefix(f"{method}-")
            return self._dense(seed, method)[plan.owners.index(owner)]
        anchor = costs.dense_cost(self.sizes)
        return anchor if method == "anchor" else self._of_dense(row, seed, anchor)

    def _of_pairs(self, row: Row, seed: int) -> costs.Cost:
        pairs = pair_costs(self.study, seed)
        experts, default = self.experts, self.study.plan.merged_top_k
        if row.method == "oracle":
            return costs.release_cost(self.sizes, experts=2, top_k=2, before=pairs)
        if row.method == "moiety-plain":
            config = _read_config(FlexOlmoConfig, self.study.plain(seed))
            sizes = costs.Sizes.of(config, self.sizes.window)
            return costs.mixture_cost(sizes, experts=experts, top_k=default, before=pairs)
        top_k = int(row.name.removeprefix("moiety-k")) if row.method == "moiety" else default
        release = costs.release_cost(self.sizes, experts=experts, top_k=top_k, before=pairs)
        if row.method != "btm-pairs":
            return release
        # Pairs share all but their experts, so they are kept as the release is.
        models = costs.branch_train_merge_cost([costs.dense_cost(self.sizes), *pairs])
        return dataclasses.replace(models, parameters=release.parameters)

    def _of_dense(self, row: Row, seed: int, anchor: costs.Cost) -> costs.Cost:
        models = [anchor, *self._dense(seed, DENSE)]
        if row.method == "soup":
            return costs.soup_cost(models)
        if row.method.startswith("btm-"):
            return costs.branch_train_merge_cost(models)
        prompt = costs.prompt_routing_cost
        weighted = costs.weighted_soup_cost
        bill = prompt if row.method == "prompt-routing" else weighted
        window = self.sizes.window
        return bill(models, prompt_tokens=likelihood.PROMPT_TOKENS, window_tokens=window)

    def _dense(self, seed: int, name: str) -> list[costs.Cost]:
        part: baselines.Part = "feed-forward" if name == "dense-ff" else "whole"
        return [costs.dense_cost(self.sizes, n, part) for n in self._tokens(seed, name)]

    def _tokens(self, seed: int, name: str) -> list[int]:
        folder = self.study.trained(seed, name)
        owners = self.study.plan.owners
        return [baselines.read_trained(folder / owner).tokens_seen for owner in owners]


def sizes_of(study: Study) -> costs.Sizes:
    """Sizes of the anchor, and of the windows that are trained and scored."""
    config = _read_config(Olmo2Config, study.anchor)
    return costs.Sizes.of(config, study.plan.config.data.window_tokens)


def _read_config(kind: Any, folder: Path) -> Any:
    """A checkpoint's configuration, without its weights."""
    path = folder / "config.json"
    return kind(**parse_json(read_limited(path), path))


def pair_costs(study: Study, seed: int) -> list[costs.Cost]:
    """What each owner's training took, in the order of their names."""
    sizes = sizes_of(study)
    runs = [study.run(seed, owner) / "run.json" for owner in study.plan.owners]
    seen = [papers.read_paper(papers.RunPaper, run).tokens_seen for run in runs]
    return [costs.pair_cost(sizes, tokens) for tokens in seen]


def joint_part(name: str) -> baselines.JointPart:
    """What a joint way of this name trains."""
    return "experts" if name == "joint-experts" else "whole"


def joint_tokens(study: Study, flops: int, part: baselines.JointPart) -> int:
    """Tokens that a mixture, or this part of it, can be trained on for so many FLOPs."""
    experts, top_k = len(study.plan.owners) + 1, study.plan.trained_top_k
    one = costs.mixture_cost(sizes_of(study), experts=experts, top_k=top_k, tokens=1, part=part)
    return max(1, flops // one.training_flops)

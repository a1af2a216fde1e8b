"""Scores are what their papers say, and an AUC is the share of pairs that are ranked right."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from tests import tiny
from tests.audit.conftest import SEPARATOR

from moiety.audit.control import Control
from moiety.audit.membership import (
    MembershipScores,
    PassageScores,
    attack_scores,
    hits_at,
    membership_of,
    roc_curve,
    score_passages,
    token_scores,
)
from moiety.audit.records import Passage
from moiety.audit.views import views_of
from moiety.errors import ConfigError


def passages_of(tokens: np.ndarray, sizes: list[int]) -> list[Passage]:
    """Rows cut to these sizes; the text is made up, since only its bytes count."""
    return [
        Passage(row[:size], str(row[:size].tolist()).encode())
        for row, size in zip(tokens, sizes, strict=True)
    ]


def made_up(members: np.ndarray, outsiders: np.ndarray) -> MembershipScores:
    return MembershipScores(PassageScores(*[members] * 4), PassageScores(*[outsiders] * 4))


def test_a_views_nats_are_those_of_the_mixture(tiny_world: tiny.World) -> None:
    mixture = tiny_world.load("amy", "bob", "cat")
    tokens = tiny.random_tokens(3, 30).numpy()
    sizes = [30, 17, 24]
    documents = [row[:size] for row, size in zip(tokens, sizes, strict=True)]
    for view in views_of(mixture, "bob"):
        found = list(token_scores(view, documents, SEPARATOR))
        for (logs, _), document in zip(found, documents, strict=True):
            alone = torch.from_numpy(np.insert(document, 0, SEPARATOR))[None]
            with view.using():
                nats = mixture.score(alone, torch.zeros_like(alone))[0]
            np.testing.assert_allclose(-logs, nats.numpy(), atol=2e-5)


def test_scores_are_those_of_their_papers(tiny_world: tiny.World) -> None:
    mixture = tiny_world.load("amy")
    tokens = tiny.random_tokens(20, 40, seed=3).numpy()
    passages = passages_of(tokens, [40, 16, 23, 31] * 5)
    view = views_of(mixture, "amy")[2]
    found = score_passages(view, passages, SEPARATOR)
    for number, passage in enumerate(passages):
        ids = torch.from_numpy(np.insert(passage.tokens, 0, SEPARATOR))[None]
        with view.using():
            logs = tiny.logits_of(mixture, ids)[0, :-1].double().log_softmax(-1)
        probs = logs.exp()
        own = logs[torch.arange(len(logs)), ids[0, 1:]]
        mean = (probs * logs).sum(-1)
        spread = ((probs * logs**2).sum(-1) - mean**2).sqrt()
        fifth = len(own) // 5
        assert found.loss[number] == pytest.approx(float(own.mean()), abs=1e-4)
        packed = len(zlib.compress(passage.text))
        assert found.zlib[number] == pytest.approx(float(own.sum()) / packed, abs=1e-4)
        assert found.min_k[number] == pytest.approx(float(own.sort()[0][:fifth].mean()), abs=1e-4)
        standard = ((own - mean) / spread).sort()[0][:fifth].mean()
        assert found.min_k_plus[number] == pytest.approx(float(standard), abs=1e-3)


def test_an_auc_is_the_share_of_pairs_ranked_right() -> None:
    rng = np.random.default_rng(0)
    members, outsiders = rng.integers(0, 9, 40) / 4 + 0.3, rng.integers(0, 9, 30) / 4
    anchor_m, anchor_o = rng.normal(size=40), rng.normal(size=30)
    found = membership_of(made_up(members, outsiders), made_up(anchor_m, anchor_o))

    def by_counting(left: np.ndarray, right: np.ndarray) -> float:
        wins = sum((a > b) + (a == b) / 2 for a in left for b in right)
        return wins / (len(left) * len(right))

    mine, theirs = by_counting(members, outsiders), by_counting(anchor_m, anchor_o)
    for attack in ("loss", "zlib", "min-k", "min-k++"):
        one = found[attack]
        assert one.auc.value == pytest.approx(mine, abs=1e-6)
        assert one.excess is not None
        assert one.excess.value == pytest.approx(mine - theirs, abs=1e-6)
        assert one.auc.low < mine < one.auc.high
    ratio = by_counting(members - anchor_m, outsiders - anchor_o)
    assert found["ratio"].auc.value == pytest.approx(ratio, abs=1e-6)
    assert found["ratio"].excess.value == pytest.approx(ratio - 0.5, abs=1e-6)


def test_the_anchor_has_neither_excess_nor_ratio() -> None:
    rng = np.random.default_rng(1)
    same = made_up(rng.normal(size=25), rng.normal(size=25))
    found = membership_of(same, None)
    assert set(found) == {"loss", "zlib", "min-k", "min-k++"}
    assert all(one.excess is None for one in found.values())
    excess = membership_of(same, same)["loss"].excess
    assert excess is not None
    assert (excess.value, excess.low, excess.high) == (0, 0, 0)
    assert membership_of(same, same)["ratio"].auc.value == 0.5


def test_hits_at_few_false_alarms_by_hand() -> None:
    outsiders = np.arange(200.0)  # 1 % are two: the border is the third largest, 197
    members = np.array([250.0, 198.0, 197.5, 197.0, 5.0])
    found = hits_at(members, outsiders, 100)
    assert found is not None
    assert found.value == 3 / 5
    assert found.low < 3 / 5 < found.high
    assert hits_at(members, outsiders, 1000) is None
    tied = hits_at(members, np.full(200, 197.5), 100)
    assert tied is not None
    assert tied.value == 2 / 5  # what ties with outsiders would let them all in


def test_a_curve_is_short_rises_and_has_the_area_of_the_auc() -> None:
    rng = np.random.default_rng(2)
    members, outsiders = rng.normal(size=900) + 1, rng.normal(size=800)
    curve = roc_curve(members, outsiders)
    false, true = np.array(curve).T
    assert curve[0] == (0, 0)
    assert curve[-1] == (1, 1)
    assert len(curve) <= 256
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    auc = membership_of(made_up(members, outsiders), None)["loss"].auc.value
    assert np.trapezoid(true, false) == pytest.approx(auc, abs=2e-3)
    reached = {
        (float((outsiders >= border).mean()), float((members >= border).mean()))
        for border in [*members, *outsiders]
    }
    assert set(curve[1:]) <= reached
    assert roc_curve(np.zeros(3), np.zeros(4)) == ((0, 0), (1, 1))


def test_what_the_control_learned_by_heart_is_told_apart(
    roomy_world: tiny.World, control: Control, attacked: np.ndarray
) -> None:
    anchor = views_of(roomy_world.load("amy"), "amy")[0]
    never = tiny.random_tokens(12, attacked.shape[1], seed=99).numpy()
    groups = [passages_of(rows, [32] * 12) for rows in (attacked, never)]
    scores = [
        MembershipScores(*[score_passages(view, some, SEPARATOR) for some in groups])
        for view in (control.view, anchor)
    ]
    for attack, one in membership_of(scores[0], scores[1]).items():
        assert one.auc.value > 0.9, attack
        assert one.excess is not None
        assert one.excess.low > 0, attack
    assert set(attack_scores(scores[0], scores[1])) == {"loss", "zlib", "min-k", "min-k++", "ratio"}


def test_passages_must_fit_the_model(tiny_world: tiny.World) -> None:
    view = views_of(tiny_world.load("amy"), "amy")[0]
    heard: list[tuple[int, int]] = []
    fitting = passages_of(tiny.random_tokens(20, 128).numpy(), [128, *[16] * 19])
    score_passages(view, fitting, SEPARATOR, lambda done, total: heard.append((done, total)))
    assert heard == [(16, 20), (20, 20)]
    for bad in ([], passages_of(tiny.random_tokens(1, 129).numpy(), [129])):
        with pytest.raises(ConfigError, match="128 positions"):
            score_passages(view, bad, SEPARATOR)

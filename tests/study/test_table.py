"""The table's arithmetic against numbers that can be worked out by hand.

Two texts of two documents, eight bytes each. A bit is log 2 nats, so documents that cost 8 bits
cost one bit a byte.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.study.conftest import PLAN, text_table

from moiety.study import Study, read_plan
from moiety.study.scores import FIRST_TOKENS, Sample, save_nats, save_sample
from moiety.study.table import Scores

BITS = {
    # model: bits of each document of public text, and of amy's
    "anchor": ((16, 16), (32, 32)),
    "pair-amy": ((24, 24), (16, 16)),
    "moiety-k1": ((16, 20), (16, 24)),
    "without-amy": ((16, 16), (36, 32)),
}


def write_cells(study: Study, seed: int, shift: float = 0.0) -> None:
    """Documents of two tokens in a window of three: each token costs half its document's bits."""
    for number, text in enumerate(("public", "amy")):
        document = np.array([[0, 0, -1], [1, 1, -1]])
        place = np.array([[0, 1, -1], [0, 1, -1]])
        tokens, size = np.zeros((2, 4), np.int64), np.array([8, 8])
        first = dict.fromkeys(FIRST_TOKENS, size)
        save_sample(study.sample(text), Sample(tokens, tokens, document, place, size, first))
        for model, bits in BITS.items():
            more = shift if model == "moiety-k1" else 0.0
            nats = [[(b + more) / 2 * math.log(2)] * 2 + [99.0] for b in bits[number]]
            save_nats(study.cell(seed, model, text), np.array(nats, np.float32))


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.toml").write_text(PLAN + text_table("public") + text_table("amy"))
    plan = read_plan(tmp_path / "study.toml")
    return Study(plan.choose(("anchor", "oracle", "moiety", "removal"), (0,)), tmp_path / "out")


def measured(study, first=None):
    scores = Scores(study)
    kept = [row for row in scores.rows if row.name != "moiety-k2"]
    vars(scores)["rows"] = kept
    return scores.measure(first)


def test_bits_gaps_and_prices_are_those_worked_out_by_hand(study):
    write_cells(study, 0)
    found = measured(study)
    assert found.on("anchor", "amy").value == pytest.approx(4)
    assert found.on("oracle", "amy").value == pytest.approx(2)
    assert found.on("oracle", "public").value == pytest.approx(2)
    assert found.on("moiety-k1", "public").value == pytest.approx((16 + 20) / 16)
    assert found.mean("moiety-k1").value == pytest.approx((2.25 + 2.5) / 2)
    # anchor (2 + 4) / 2, oracle (2 + 2) / 2, the release (2.25 + 2.5) / 2
    assert found.gap_closed("moiety-k1").value == pytest.approx((3 - 2.375) / (3 - 2))
    assert found.gap_closed("oracle").value == pytest.approx(1)
    assert found.gap_closed("anchor").value == 0
    assert found.difference("removal", "amy").value == pytest.approx(4.25 - 4)
    assert found.difference("moiety-k1", "public").value == pytest.approx(0.25)
    assert found.ratio("moiety-k1", "oracle").value == pytest.approx(2.375 / 2 - 1)


def test_an_interval_holds_what_redrawn_documents_can_give(study):
    write_cells(study, 0)
    found = measured(study)
    # Both documents cost the anchor the same; of the release's, either may be drawn twice.
    assert found.on("anchor", "amy").interval == pytest.approx((4, 4))
    assert found.on("moiety-k1", "public").interval == pytest.approx((2, 2.5))
    assert found.gap_closed("moiety-k1").interval == pytest.approx((0.25, 1.0))


def test_seeds_are_averaged_and_told(study):
    two = Study(study.plan.choose(None, (0, 1)), study.out)
    write_cells(two, 0)
    write_cells(two, 1, shift=8)
    number = measured(two).on("moiety-k1", "public")
    assert number.by_seed == pytest.approx((2.25, 3.25))
    assert number.value == pytest.approx(2.75)
    assert measured(two).on("anchor", "public").by_seed == pytest.approx((2, 2))


def test_without_an_oracle_or_a_gain_there_is_no_gap(study):
    write_cells(study, 0)
    alone = Study(study.plan.choose(("moiety",), None), study.out)
    assert measured(alone).gap_closed("moiety-k1") is None
    for text in ("public", "amy"):
        pair, anchor = (study.cell(0, model, text) for model in ("pair-amy", "anchor"))
        pair.write_bytes(anchor.read_bytes())
    assert measured(study).gap_closed("moiety-k1") is None


def test_beginnings_are_measured_by_their_own_bytes_and_targets(study):
    write_cells(study, 0)
    sample = Scores(study).samples["amy"]
    short = Sample(
        **(vars(sample) | {"bytes_first": dict.fromkeys(FIRST_TOKENS, np.array([4, 4]))})
    )
    short.place[:, 1] = FIRST_TOKENS[0]
    save_sample(study.sample("amy"), short)
    assert measured(study, FIRST_TOKENS[0]).on("moiety-k1", "amy").value == pytest.approx(20 / 8)
    assert measured(study, FIRST_TOKENS[1]).on("moiety-k1", "amy").value == pytest.approx(40 / 8)

"""The plain checkpoint in a study: made of the release, scored by stock software, and its price."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tests.study.conftest import METHODS, study
from torch.utils.flop_counter import FlopCounterMode
from transformers import FlexOlmoForCausalLM

from moiety.data import load_tokenizer
from moiety.study import Study, read_plan
from moiety.study.scores import load_nats, load_sample


@pytest.fixture(scope="module")
def plain(desk, done, tmp_path_factory):
    """The small study with one method more."""
    out = shutil.copytree(done, tmp_path_factory.mktemp("plain") / "study")
    shutil.rmtree(out / "report")
    assert study(desk, out, methods=(*METHODS, "moiety-plain")) == 0
    return Study(read_plan(desk / "study.toml"), out)


def row_of(plain):
    report = json.loads((plain.report / "report.json").read_bytes())
    return {row["name"]: row for row in report["rows"]}


@pytest.mark.parametrize("text", ["public", "amy", "bob"])
def test_it_says_of_a_text_from_its_beginning_what_the_release_says(plain, text):
    """What goes on with a document is read as if it began one, so only near to it."""
    sample = load_sample(plain.sample(text))
    begun = sample.tokens[:, 0] == load_tokenizer(plain.anchor)[1]
    assert 0 < begun.sum() < len(begun)
    ours, theirs = (
        load_nats(plain.cell(0, model, text), sample) for model in ("moiety-k3", "moiety-plain")
    )
    where = sample.counted & begun[:, None]
    np.testing.assert_allclose(theirs[where], ours[where], atol=2e-3)
    rows = row_of(plain)
    bits = [rows[name]["bits_per_byte"][text]["value"] for name in ("moiety-k3", "moiety-plain")]
    assert bits[1] == pytest.approx(bits[0], abs=0.05)


def test_its_bill_is_what_the_counter_counts(plain):
    model = FlexOlmoForCausalLM.from_pretrained(plain.plain(0), attn_implementation="eager")
    model.set_experts_implementation("eager")
    window = plain.plan.config.data.window_tokens
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(2, 2 + window)[None], use_cache=False)
    rows = row_of(plain)
    bill = rows["moiety-plain"]["cost"]
    assert bill["inference_flops_per_token"] * window == counter.get_total_flops()
    assert bill["parameters"] == sum(p.numel() for p in model.parameters())
    assert bill["training_flops"] == rows["moiety-k3"]["cost"]["training_flops"]


def test_the_summary_tells_its_gap(plain):
    report = json.loads((plain.report / "report.json").read_bytes())
    told = {finding["told"]: finding["number"]["value"] for finding in report["findings"]}
    gap = row_of(plain)["moiety-plain"]["gap_closed"]["value"]
    assert told["gap closed, plain checkpoint (moiety-plain)"] == gap

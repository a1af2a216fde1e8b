"""The table of evidence against a count by hand, and what it does not tell."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.data import PackedText, Skipped, Sources, load_tokenizer, pack_text
from moiety.errors import DataError
from moiety.family import ENTRY_MAX
from moiety.train.table import LEAST_RECORDS, evidence_table


@pytest.fixture
def packed(tiny_anchor, tmp_path):
    """Packs (record, text) pairs; returns them as tokens too."""
    tokenizer, separator = load_tokenizer(tiny_anchor)

    def pack(name, documents, **how):
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"text": text, "who": record}) for record, text in documents]
        path.write_text("\n".join(lines) + "\n", "utf-8")
        sources = Sources([str(path)], record_key="who")
        options = {"window_tokens": 16, "align": False, "separator": separator} | how
        text = pack_text(sources.documents(Skipped()), tokenizer, tmp_path / name, **options)
        tokens = [(who, tokenizer.encode(t, add_special_tokens=False).ids) for who, t in documents]
        return text, tokens

    return pack


def by_hand(own, public, separator):
    """The table by the plainest loops: counts, smoothing, logarithm, clamp, rounding."""
    counts = Counter(token for _, tokens in own for token in tokens)
    for token in list(counts):
        if len({who for who, tokens in own if token in tokens}) < 5:
            del counts[token]
    common = Counter(token for _, tokens in public for token in tokens)
    public_total = sum(common.values()) + tiny.VOCAB
    own_total = sum(counts.values()) + 1000
    table = []
    for token in range(tiny.VOCAB):
        p_public = (common[token] + 1) / public_total
        p_own = (counts[token] + 1000 * p_public) / own_total
        entry = min(max(math.log(p_own / p_public), -4.0), 4.0)
        table.append(0.0 if token == separator else round(entry * 64) / 64)
    return table


def texts(seed, documents, records):
    return [(f"r{n % records}", text) for n, text in enumerate(tiny.language(seed, documents))]


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize(("documents", "records"), [(60, 60), (60, 6), (300, 150)])
def test_it_is_what_a_count_by_hand_gives(packed, documents, records, align):
    own_text, own = packed("own", texts(3, documents, records), align=align)
    public_text, public = packed("public", texts(0, 50, 50))
    found = evidence_table(own_text, public_text, tiny.VOCAB)
    assert found.dtype == torch.float32
    assert found.tolist() == by_hand(own, public, own_text.separator)
    assert found.any()
    assert (found * 64 == (found * 64).round()).all()
    assert found.abs().max() <= ENTRY_MAX


@pytest.mark.parametrize(("documents", "records"), [(60, LEAST_RECORDS - 1), (1, 1)])
def test_text_of_too_few_records_is_refused(packed, documents, records):
    own_text, _ = packed("own", texts(3, documents, records))
    public_text, _ = packed("public", texts(0, 50, 50))
    with pytest.raises(DataError, match="5 records"):
        evidence_table(own_text, public_text, tiny.VOCAB)


def test_the_clamp_holds_on_either_side(packed):
    own_text, own = packed("own", [(f"r{n}", "ba" * 900) for n in range(60)])
    public_text, public = packed("public", texts(0, 50, 50))
    found = evidence_table(own_text, public_text, tiny.VOCAB)
    assert found.tolist() == by_hand(own, public, own_text.separator)
    assert float(found.max()) == ENTRY_MAX
    assert float(found.min()) == -ENTRY_MAX


def test_the_separator_says_nothing(packed):
    own_text, _ = packed("own", [(f"r{n}", "ba") for n in range(2000)])
    public_text, _ = packed("public", texts(0, 50, 50))
    assert float(evidence_table(own_text, public_text, tiny.VOCAB)[own_text.separator]) == 0.0


def test_a_token_of_four_records_is_told_as_one_of_none_and_of_five_is_not(packed):
    public_text, public = packed("public", texts(0, 50, 50))
    common = {token for _, tokens in public for token in tokens}
    base = [(f"r{n}", "ba ba ba") for n in range(40)]
    without = evidence_table(packed("without", base)[0], public_text, tiny.VOCAB)
    tables = {}
    for records in (4, 5):
        # Ten documents hold the word, of four records or of five: it is records that count.
        more = [(f"r{n % records}", "Q") for n in range(10)]
        text, tokens = packed(f"own-{records}", [*base, *more])
        tables[records] = evidence_table(text, public_text, tiny.VOCAB)
    (word,) = tokens[-1][1]
    assert word not in common
    assert torch.equal(tables[4], without)
    assert float(tables[5][word]) > 1.0
    absent = [
        token for token in range(tiny.VOCAB) if token not in {t for _, ts in tokens for t in ts}
    ]
    absent.remove(public_text.separator)
    assert len({float(tables[5][token]) for token in absent}) == 1, "absent tokens are told alike"


def test_the_size_of_short_text_can_be_read_from_absent_tokens_as_the_threats_say(packed):
    public, _ = packed("public", texts(0, 30, 30))
    own, _ = packed("own", texts(1, 60, 10))
    table_V = evidence_table(own, public, tiny.VOCAB)
    counted = int(own.token_counts(tiny.VOCAB, LEAST_RECORDS).sum())
    guess = 1000 * (math.exp(-float(table_V.min())) - 1)
    assert counted > 100
    assert abs(guess - counted) < 0.01 * (counted + 1000)
    # Where the clamp begins to hide it.
    assert round(1000 * (math.exp(ENTRY_MAX) - 1)) == 53_598


def test_the_order_of_the_text_does_not_matter(packed):
    documents = texts(3, 60, 30)
    public_text, _ = packed("public", texts(0, 50, 50))
    order = np.random.default_rng(0).permutation(len(documents))
    one = evidence_table(packed("one", documents)[0], public_text, tiny.VOCAB)
    shuffled = [documents[n] for n in order]
    other = evidence_table(packed("other", shuffled)[0], public_text, tiny.VOCAB)
    assert torch.equal(one, other)


def test_own_text_gets_positive_evidence_and_strange_text_negative(packed):
    public_text, public = packed("public", texts(0, 60, 60))
    own_text, own = packed("own", texts(3, 60, 60))
    table = evidence_table(own_text, public_text, tiny.VOCAB)
    mine, others = (sum(float(table[t]) for t in text[7][1]) for text in (own, public))
    assert mine > 1
    assert others < -1


def test_a_text_equal_to_the_public_one_says_nothing(packed):
    text, _ = packed("public", texts(0, 400, 400))
    table = evidence_table(text, text, tiny.VOCAB)
    held = text.token_counts(tiny.VOCAB) > 200
    assert held.sum() > 10
    assert float(table[torch.from_numpy(held)].abs().max()) < 0.05


def test_a_packed_text_is_all_it_reads(packed, tmp_path):
    text, _ = packed("public", texts(0, 50, 50))
    again = PackedText.open(tmp_path / "public")
    one, two = (evidence_table(t, t, tiny.VOCAB) for t in (text, again))
    assert torch.equal(one, two)

"""The classifier tells texts apart, and not where there is nothing to tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests import tiny

from moiety.errors import DataError
from moiety.tune import classifier
from moiety.tune.classifier import Text, classify, hashed


def by_words(texts):
    """A tokenizer that needs no training: a number for each word."""
    return [[int.from_bytes(word.encode()[:6], "big") for word in text.split()] for text in texts]


def language(seed, count, skip=0):
    texts = list(tiny.language(seed, count + skip))[skip:]
    return [Text(text, str(number + skip)) for number, text in enumerate(texts)]


def test_a_document_is_its_tokens_and_pairs_each_once():
    one, two = hashed([7, 8, 7, 8]), hashed([7, 8, 7])
    assert one.tolist() == two.tolist() == sorted(set(one.tolist()))
    assert len(one) == 4  # 7, 8, (7, 8), (8, 7)
    assert set(hashed([7]).tolist()) < set(one.tolist())
    assert len(hashed([])) == 0


def test_pairs_are_ordered_and_are_not_single_tokens():
    assert hashed([1, 2]).tolist() != hashed([2, 1]).tolist()
    every = hashed(range(300))
    assert len(every) > 595  # of 599: few collide


def test_two_languages_are_told_apart_and_public_text_of_the_same_language_is_found():
    own = language(3, 40)
    public = [*language(4, 40), *language(3, 10, skip=40)]
    verdict = classify(own, public, by_words)
    assert verdict.public_D[40:].min() > verdict.public_D[:40].max()
    assert classify(own, public[:40], by_words).accuracy == 1.0


def test_one_language_cannot_be_told_from_itself():
    texts = language(3, 120)
    verdict = classify(texts[::2], texts[1::2], by_words)
    assert 0.3 < verdict.accuracy < 0.7


def test_a_copy_of_own_text_is_found_though_it_was_called_public():
    """What is judged was not learned from: a label cannot push its own document down."""
    own, others = language(3, 40), language(4, 40)
    copies = [Text(text.text, f"copy {number}") for number, text in enumerate(own[:20])]
    verdict = classify(own, [*others, *copies], by_words)
    assert verdict.public_D[40:].min() > verdict.public_D[:40].max()


def test_records_stay_together():
    folds = {classifier._fold("patient 7") for _ in range(3)}
    assert len(folds) == 1
    assert {classifier._fold(str(number)) for number in range(20)} == {0, 1}


def test_the_fit_is_the_regression_it_claims_to_be():
    """Against plain gradient descent on dense features, to the optimum."""
    texts = [text.text for text in (*language(3, 6), *language(4, 9))]
    own_D = torch.arange(15) < 6
    bags = classifier._Bags.of(texts, by_words)
    found_D = classifier._fit(bags, own_D, torch.ones(15, dtype=torch.bool))

    used = sorted({int(n) for ids in by_words(texts) for n in hashed(ids)})
    dense_DV = torch.zeros(15, len(used), dtype=torch.double)
    for row, ids in enumerate(by_words(texts)):
        features = hashed(ids)
        for feature in features:
            dense_DV[row, used.index(int(feature))] = 1 / math.sqrt(len(features))
    weights_V = torch.zeros(len(used), dtype=torch.double, requires_grad=True)
    bias = torch.zeros((), dtype=torch.double, requires_grad=True)
    weight_D = torch.where(own_D, 0.5 / 6, 0.5 / 9)
    optimizer = torch.optim.LBFGS([weights_V, bias], max_iter=2000, tolerance_grad=1e-12)

    def loss():
        optimizer.zero_grad()
        logits_D = dense_DV @ weights_V + bias
        each_D = -(own_D * logits_D.sigmoid().log() + ~own_D * (-logits_D).sigmoid().log())
        value = (weight_D * each_D).sum() + 1e-4 * weights_V.square().sum()
        value.backward()
        return value

    for _ in range(20):
        optimizer.step(loss)
    expected_D = (dense_DV @ weights_V + bias).detach()
    np.testing.assert_allclose(found_D.numpy(), expected_D.numpy(), rtol=0.02, atol=0.02)


def test_a_single_record_tells_nothing():
    own = [Text(text.text, "one patient") for text in language(3, 20)]
    with pytest.raises(DataError, match="too few records"):
        classify(own, language(4, 20), by_words)

"""The bootstrap: against a loop, against normal theory, and its coverage where truth is known."""

import math

import numpy as np
import pytest

from moiety.errors import DataError
from moiety.evaluate import bootstrap
from moiety.evaluate.bootstrap import TextScores

MODELS = ["anchor", "anchor+law", "all", "all-law"]


def simulate(generator, num_documents, models=1, rate=2.0):
    """Documents of mixed length; a document's nats per byte vary around ``rate``."""
    bytes_D = generator.integers(200, 4000, num_documents).astype(float)
    hard_D = generator.normal(0, 0.3, num_documents)
    noise_MD = generator.normal(0, 0.05, (models, num_documents))
    return TextScores((rate + hard_D + noise_MD) * bytes_D, bytes_D)


def test_bits_per_byte_is_the_ratio_of_sums():
    text = simulate(np.random.default_rng(0), 50, models=3)
    loop = []
    for nats_D in text.nats:
        nats = sum(float(value) for value in nats_D)
        loop.append(nats / sum(float(value) for value in text.document_bytes) / math.log(2))
    np.testing.assert_allclose(bootstrap.bits_per_byte(text.nats, text.document_bytes), loop)


def test_replicates_equal_a_loop_over_drawn_documents():
    text = simulate(np.random.default_rng(1), 17, models=2)
    fast = bootstrap.replicates([text], samples=20, seed=5)
    generator = np.random.default_rng([5, 0])
    counts = generator.multinomial(17, np.full(17, 1 / 17), size=20)
    for sample in range(20):
        drawn = [d for d in range(17) for _ in range(counts[sample, d])]
        assert len(drawn) == 17
        for model in range(2):
            nats = sum(text.nats[model, d] for d in drawn)
            size = sum(text.document_bytes[d] for d in drawn)
            assert fast[sample, 0, model] == pytest.approx(nats / size / math.log(2))


def test_blocks_do_not_change_the_number_of_samples(monkeypatch):
    text = simulate(np.random.default_rng(2), 40, models=2)
    monkeypatch.setattr(bootstrap, "_BLOCK_NUMBERS", 100)
    assert bootstrap.replicates([text, text], samples=11).shape == (11, 2, 2)


def test_interval_agrees_with_normal_theory_of_a_ratio():
    text = simulate(np.random.default_rng(3), 2000)
    low, high = bootstrap.interval(lambda bits: bits, [text], samples=4000)
    value = bootstrap.bits_per_byte(text.nats, text.document_bytes)[0] * math.log(2)
    residual_D = text.nats[0] - value * text.document_bytes
    error = residual_D.std() / math.sqrt(2000) / text.document_bytes.mean()
    expected = np.array([value - 1.96 * error, value + 1.96 * error]) / math.log(2)
    np.testing.assert_allclose([low[0, 0], high[0, 0]], expected, atol=0.1 * error)


def test_coverage_is_near_95_percent():
    hits = 0
    for number in range(300):
        text = simulate(np.random.default_rng(1000 + number), 150)
        low, high = bootstrap.interval(lambda bits: bits, [text], samples=500, seed=number)
        # nats per byte are independent of the length, so the ratio of means is the rate
        hits += bool(low[0, 0] <= 2.0 / math.log(2) <= high[0, 0])
    # 300 trials of 0.95: a standard deviation of 3.8 hits
    assert 285 - 4 * 3.8 <= hits <= 285 + 4 * 3.8


def test_coverage_of_a_difference_between_models_is_near_95_percent():
    hits = 0
    for number in range(300):
        generator = np.random.default_rng(9000 + number)
        text = simulate(generator, 150, models=2)
        text.nats[1] -= 0.02 * text.document_bytes
        low, high = bootstrap.interval(
            lambda bits: bits[..., 0, 0] - bits[..., 0, 1], [text], samples=500, seed=number
        )
        hits += bool(low <= 0.02 / math.log(2) <= high)
    assert 285 - 4 * 3.8 <= hits <= 285 + 4 * 3.8


def test_pairing_makes_a_difference_much_surer_than_either_model():
    text = simulate(np.random.default_rng(4), 300, models=2)
    low, high = bootstrap.interval(lambda bits: bits, [text])
    single = (high - low)[0, 0]
    low, high = bootstrap.interval(lambda bits: bits[..., 0, 0] - bits[..., 0, 1], [text])
    # documents vary by 0.3, a pair on one document by 0.05 each: sqrt(2) * 0.05 / 0.3 = 0.24
    assert (high - low) / single < 0.4


def flat(bits_by_model, num_documents=30):
    """A text on which every document has exactly the wanted bits per byte."""
    bytes_D = np.linspace(500, 3000, num_documents)
    return TextScores(np.outer(np.array(bits_by_model) * math.log(2), bytes_D), bytes_D)


def test_gap_closed_and_removal_by_hand():
    scores = {"public": flat([1.0, 1.3, 1.1, 1.05]), "law": flat([3.0, 2.0, 2.2, 3.01])}
    measures = bootstrap.measure(MODELS, scores, samples=50)
    # anchor (1 + 3) / 2 = 2, all (1.1 + 2.2) / 2 = 1.65, oracle (1 + 2) / 2 = 1.5
    assert measures.gap_closed == pytest.approx((2 - 1.65) / (2 - 1.5))
    assert measures.gap_closed_interval == pytest.approx((0.7, 0.7))
    assert measures.removal == {"law": pytest.approx(0.01)}
    assert measures.bits_per_byte["all"]["public"] == pytest.approx(1.1)
    assert measures.bits_per_byte_interval["anchor"]["law"] == pytest.approx((3.0, 3.0))


def test_no_gap_to_close_is_none_and_not_a_number():
    scores = {"law": flat([2.0, 2.5, 2.1, 2.0])}
    measures = bootstrap.measure(MODELS, scores, samples=20)
    assert measures.gap_closed is None
    assert measures.gap_closed_interval is None
    assert bootstrap.measure(["anchor"], {"law": flat([2.0])}).gap_closed is None


def test_the_same_seed_gives_the_same_interval():
    text = simulate(np.random.default_rng(6), 60, models=4)
    first = bootstrap.measure(MODELS, {"law": text}, samples=100, seed=3)
    assert first == bootstrap.measure(MODELS, {"law": text}, samples=100, seed=3)
    assert first != bootstrap.measure(MODELS, {"law": text}, samples=100, seed=4)


@pytest.mark.parametrize(
    ("nats", "size"),
    [
        (np.ones((2, 3)), np.ones(4)),
        (np.ones(3), np.ones(3)),
        (np.ones((2, 0)), np.ones(0)),
        (np.ones((1, 2)), np.array([1.0, 0.0])),
        (np.array([[1.0, np.nan]]), np.ones(2)),
    ],
)
def test_scores_that_cannot_be_are_refused(nats, size):
    with pytest.raises(DataError):
        TextScores(nats, size)

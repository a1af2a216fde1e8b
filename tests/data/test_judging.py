"""Documents scored one by one: each of their tokens counts once, and nothing else does."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from moiety.data import PackedText, pack_text
from moiety.data.documents import Document
from moiety.data.judging import choose_documents
from moiety.data.packed import Windows

TEXTS = st.lists(st.text(alphabet="ab é\n1", min_size=1, max_size=30), min_size=1, max_size=9)


def cost_of_targets(windows: Windows) -> npt.NDArray[np.float32]:
    """A stand-in for a model: predicting a token costs a function of it and the one before."""
    before, target = windows.tokens[:, :-1], windows.tokens[:, 1:]
    return ((before * 31 + target * 17) % 101 + 1).astype(np.float32)


def cost_of_text(tokenizer: Tokenizer, text: str) -> float:
    return cost_of_ids([0, *tokenizer.encode(text, add_special_tokens=False).ids])


def cost_of_ids(ids: list[int]) -> float:
    return float(sum((a * 31 + b * 17) % 101 + 1 for a, b in pairwise(ids)))


def pack(texts: list[str], tokenizer: Tokenizer, folder: Path, window_tokens: int) -> PackedText:
    documents = [Document(text, str(index), "") for index, text in enumerate(texts)]
    return pack_text(
        documents, tokenizer, folder, window_tokens=window_tokens, separator=0, align=True
    )


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.integers(1, 7), st.integers(1, 60), st.integers(0, 3), st.integers(1, 4))
def test_each_chosen_document_costs_what_its_text_costs(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    texts: list[str],
    window_tokens: int,
    max_tokens: int,
    seed: int,
    batch_windows: int,
) -> None:
    packed = pack(texts, tokenizer, tmp_path_factory.mktemp("judge") / "t", window_tokens)
    judged = packed.judge(
        cost_of_targets,
        max_tokens=max_tokens,
        seed=seed,
        batch_windows=batch_windows,
        beginnings=(1, 3, 8),
    )
    chosen = [texts[index] for index in judged.documents]
    assert judged.nats.tolist() == [cost_of_text(tokenizer, text) for text in chosen]
    assert judged.bytes.tolist() == [len(text.encode()) for text in chosen]
    assert judged.tokens == packed.document_tokens[judged.documents].sum()
    assert len(chosen) == 1 or judged.tokens <= max_tokens
    assert judged.documents.tolist() == choose_documents(packed, max_tokens, seed).tolist()
    for length, beginning in judged.beginnings.items():
        ids = [tokenizer.encode(text, add_special_tokens=False).ids[:length] for text in chosen]
        assert beginning.tokens.tolist() == list(map(len, ids))
        assert beginning.nats.tolist() == [cost_of_ids([0, *some]) for some in ids]
    bits = sum(cost_of_text(tokenizer, text) for text in chosen) / math.log(2)
    assert judged.bits_per_byte == pytest.approx(bits / sum(len(t.encode()) for t in chosen))


def test_everything_fits_and_a_sample_is_fair(tmp_path: Path, tokenizer: Tokenizer) -> None:
    packed = pack(["a b"] * 200, tokenizer, tmp_path / "t", 4)
    assert choose_documents(packed, packed.num_tokens, 0).tolist() == list(range(200))
    times = np.zeros(200)
    for seed in range(300):
        times[choose_documents(packed, packed.num_tokens // 2, seed)] += 1
    assert times.sum() == 300 * 100
    assert 100 < times.min() <= times.max() < 200


def test_only_an_aligned_text_is_judged(tmp_path: Path, tokenizer: Tokenizer) -> None:
    packed = pack_text(
        [Document("some text", "r", "")], tokenizer, tmp_path / "t",
        window_tokens=2, separator=0, align=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="aligned"):
        packed.judge(cost_of_targets, max_tokens=10)

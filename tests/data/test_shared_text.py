"""The same claims on real text: prose, code, formulas and verse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from moiety.data import Skipped, pack_split, pack_text
from moiety.data.reading import read_documents
from moiety.data.tokenizer import train_tokenizer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DOMAINS = ["public", "medical", "code", "math", "creative"]

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="no text collection beside the checkout"),
]


@pytest.fixture(scope="module")
def real_tokenizer() -> Tokenizer:
    sources = [DATA / domain / "valid.jsonl.gz" for domain in DOMAINS]
    return train_tokenizer((document.text for document in read_documents(sources)), 4096)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("align", [False, True])
def test_real_text_comes_back_from_its_windows(
    tmp_path: Path, real_tokenizer: Tokenizer, domain: str, align: bool
) -> None:
    path = DATA / domain / "test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    skipped = Skipped()
    documents = read_documents([path], skipped=skipped)
    packed = pack_text(
        documents, real_tokenizer, tmp_path / "t", window_tokens=256, separator=0, align=align
    )
    ids: list[list[int]] = [[] for _ in texts]
    windows = packed.windows(range(packed.num_windows))
    for tokens, owners in zip(windows.tokens, windows.documents, strict=True):
        for owner in set(owners[:-1].tolist()) - {-1}:
            ids[owner] += tokens[:-1][owners[:-1] == owner].tolist()
    assert [real_tokenizer.decode(one[1:]) for one in ids] == texts
    assert packed.num_documents + skipped.total == len(texts)
    assert packed.num_bytes == sum(len(text.encode()) for text in texts)


def test_real_documents_of_one_source_stay_on_one_side(
    tmp_path: Path, real_tokenizer: Tokenizer
) -> None:
    source = tmp_path / "notes.jsonl"
    with gzip.open(DATA / "medical" / "valid.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        row["page"] = row["id"].split("#")[0]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, heldout = pack_split(
        read_documents([source], record_key="page"),
        real_tokenizer,
        tmp_path / "t",
        window_tokens=128,
        separator=0,
        heldout_fraction=0.2,
    )
    assert train.num_records + heldout.num_records == len({row["page"] for row in rows})
    assert train.num_documents + heldout.num_documents == len(rows)
    assert 0 < heldout.num_documents < len(rows) / 2

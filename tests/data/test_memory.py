"""A corpus is streamed: memory does not grow with it. Measured in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

PACK = """
import resource, sys
from pathlib import Path
from moiety.data import pack_split
from moiety.data.tokenizer import train_tokenizer
from moiety.data.reading import read_documents
from moiety.data.tokenizer import train_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
if sys.argv[3] == "pieces":
    tokenizer = train_tokenizer(["some words to begin with " * 20], 300)
else:
    # As many token objects as a real vocabulary makes, at a fraction of the time.
    tokenizer = Tokenizer(models.WordLevel({"end": 0, "word": 1}, unk_token="word"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
warm = sys.argv[2] + "/warm.jsonl"
Path(warm).write_text('{"text": "a warm start"}\\n{"text": "of every room"}\\n' * 2000)
pack_split(read_documents([warm]), tokenizer, Path(sys.argv[2], "warm"),
           window_tokens=8, separator=0, heldout_fraction=0.3)
before = peak()
train, heldout = pack_split(read_documents([sys.argv[1]]), tokenizer, Path(sys.argv[2], "packed"),
                            window_tokens=256, separator=0)
for packed in (train, heldout):
    packed.windows(range(min(64, packed.num_windows)))
print(peak() - before, train.num_bytes + heldout.num_bytes)
"""


def write_corpus(path: Path, megabytes: int) -> None:
    words = ["the", "patient", "was", "seen", "and", "came", "back", "with", "other", "words"]
    source = random.Random(7)
    block = [" ".join(source.choices(words, k=400)) for _ in range(50)]
    with path.open("w") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            text = f"{number} {block[number % 50]}"
            file.write(
                text + "\n\n" if path.suffix == ".txt" else json.dumps({"text": text}) + "\n"
            )
            number += 1
        if path.suffix == ".txt":
            path.with_name("other.txt").write_text("another record\n" * 5000)


def growth_in_megabytes(source: Path, folder: Path, vocabulary: str) -> tuple[int, int]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TOKENIZERS_PARALLELISM": "false",
    }
    output = subprocess.check_output(
        [sys.executable, "-c", PACK, str(source), str(folder), vocabulary],
        env=environment,
        text=True,
    )
    growth, text_bytes = map(int, output.split())
    return growth, text_bytes


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.txt"])
def test_thirty_megabytes_stay_on_disk(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    write_corpus(tmp_path / "in" / name, 30)
    growth, text_bytes = growth_in_megabytes(tmp_path / "in", tmp_path, "words")
    assert text_bytes > 28_000_000
    assert growth < 60


@pytest.mark.slow
def test_two_hundred_megabytes_need_little_more_than_thirty(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_corpus(tmp_path / "in" / "corpus.jsonl", 200)
    growth, text_bytes = growth_in_megabytes(tmp_path / "in", tmp_path, "pieces")
    assert text_bytes > 190_000_000
    assert growth < 100

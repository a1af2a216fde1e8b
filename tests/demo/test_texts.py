"""The demo's texts: the same bytes twice, the wanted size, apart from each other, no places."""

import json
import os
import socket
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from moiety.demo import texts
from moiety.errors import ConfigError, DataError

PUBLIC_BYTES = 1_500_000
OWNER_BYTES = 400_000


def write_all(folder):
    paths = {"public": texts.write_public(folder, PUBLIC_BYTES)}
    for name in texts.OWNERS:
        paths[name] = texts.write_owner(name, folder, OWNER_BYTES)
    return paths


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def documents(written):
    return {
        name: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for name, path in written.items()
    }


def size(documents):
    return sum(len(document["text"].encode()) for document in documents)


def test_the_same_bytes_twice_within_the_time(written, tmp_path):
    start = time.process_time()
    again = write_all(tmp_path)
    assert time.process_time() - start < 15
    for name, path in written.items():
        assert path.read_bytes() == again[name].read_bytes(), name


def test_sizes_fill_the_budget_and_never_pass_it(documents):
    assert 0.97 * PUBLIC_BYTES < size(documents["public"]) <= PUBLIC_BYTES
    for name in ("hospital", "software-house"):
        assert 0.97 * OWNER_BYTES < size(documents[name]) <= OWNER_BYTES, name
    # how many licences there are depends on the installation
    assert 150_000 < size(documents["law-office"]) <= OWNER_BYTES


def test_fields_are_exactly_the_promised_ones(documents):
    for name, rows in documents.items():
        fields = {"id", "text", "patient_id"} if name == "hospital" else {"id", "text"}
        assert all(set(row) == fields and row["text"].strip() for row in rows), name
        assert len({row["id"] for row in rows}) == len(rows)


def shingles(rows, words=13):
    found = set()
    for row in rows:
        split = row["text"].lower().split()
        found |= {tuple(split[start : start + words]) for start in range(len(split) - words + 1)}
    return found


def test_no_two_texts_share_their_words(documents):
    sets = {name: shingles(rows) for name, rows in documents.items()}
    for one, other in combinations(sorted(sets), 2):
        smaller = min(len(sets[one]), len(sets[other]))
        assert len(sets[one] & sets[other]) < 0.01 * smaller, (one, other)


def test_an_owner_does_not_repeat_itself(documents):
    """Held-out documents must not be what was trained on: licences are copied everywhere."""
    for name in ("law-office", "software-house"):
        rows = documents[name]
        half = shingles(rows[: len(rows) // 2])
        other = shingles(rows[len(rows) // 2 :])
        assert len(half & other) < 0.05 * len(other), name


def test_no_place_on_this_machine_is_in_the_texts(written):
    places = {sys.prefix, sys.base_prefix, str(Path.cwd()), str(written["public"].parent)}
    places |= {str(Path.home()) + os.sep, f"@{socket.gethostname()}"}
    for name, path in written.items():
        text = path.read_text("utf-8")
        assert not [place for place in places if place in text], name


def test_the_source_has_no_docstrings_or_comments(documents):
    for row in documents["software-house"]:
        lines = [line.strip() for line in row["text"].splitlines()]
        assert not [line for line in lines if line.startswith(('"""', "'''", "#"))]


def test_the_public_text_is_prose(documents):
    for row in documents["public"]:
        assert not any(line.startswith(">>>") for line in row["text"].splitlines())
        letters = sum(char.isalpha() or char.isspace() for char in row["text"])
        assert letters > 0.8 * len(row["text"]), row["text"]


def test_the_prefix_of_a_text_is_a_fair_sample(documents):
    """Mean length in the first fifth and in the rest differ by chance only."""
    lengths = [len(row["text"]) for row in documents["public"]]
    cut = len(lengths) // 5
    first, rest = sum(lengths[:cut]) / cut, sum(lengths[cut:]) / (len(lengths) - cut)
    mean = sum(lengths) / len(lengths)
    spread = (sum((value - mean) ** 2 for value in lengths) / len(lengths)) ** 0.5
    assert abs(first - rest) < 4 * spread / cut**0.5


def test_an_unknown_owner_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no owner 'bakery'"):
        texts.write_owner("bakery", tmp_path, 1000)


def test_an_installation_without_licences_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "_licence_texts", set)
    with pytest.raises(DataError, match="only 0 bytes"):
        texts.write_owner("law-office", tmp_path, 100_000)

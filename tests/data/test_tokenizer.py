"""Any text survives, nothing an owner writes becomes a border, and the separator is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from moiety.data import load_tokenizer
from moiety.data.documents import Document
from moiety.data.tokenizer import PlainEncoder, train_tokenizer
from moiety.errors import ConfigError, DataError, StateError

TEXTS = ["some words, and some more words", "zwei Wörter <|endoftext|> 1234"] * 3
TRICKS = ["<|endoftext|>", "<|pad|>", "<|", "|>", "endoftext", " ", "\n", "a", "é", "9"]


def encode(tokenizer: Tokenizer, text: str, separator: int = 0) -> list[int]:
    document = Document(text, "r", "notes.txt:1")
    (ids,) = PlainEncoder(tokenizer, separator).encode([document])
    return [int(number) for number in ids]


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(TRICKS)).map("".join)))
def test_any_text_survives_and_cannot_forge_a_border(tokenizer: Tokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert not {0, 1} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_special_tokens_of_a_new_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert tokenizer.token_to_id("<|pad|>") == 1
    assert tokenizer.encode("a b").ids == [0, *encode(tokenizer, "a b")]
    # Its own settings stay: a chat template may still write the token.
    assert tokenizer.encode("a<|endoftext|>", add_special_tokens=False).ids[-1] == 0


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert len(encode(tokenizer, "2019")) == 4


def test_training_twice_gives_the_same_tokenizer_of_the_asked_size() -> None:
    first, second = (train_tokenizer(iter(TEXTS), 280).to_str() for _ in range(2))
    assert first == second
    assert train_tokenizer(TEXTS, 280).get_vocab_size() == 280
    assert train_tokenizer(TEXTS, 258).get_vocab_size() == 258


def test_training_reports_bytes_and_refuses_nothing() -> None:
    heard: list[int] = []
    train_tokenizer(["ü", "abc"], 260, progress=heard.append)
    assert heard == [2, 5]
    with pytest.raises(ConfigError, match="every byte"):
        train_tokenizer(TEXTS, 257)
    for nothing in ([], [""]):
        with pytest.raises(DataError, match="no text"):
            train_tokenizer(nothing, 300)


def test_errors_of_the_texts_pass_through_training() -> None:
    def broken() -> Any:
        yield "text"
        raise DataError("not UTF-8", where="a.txt:1")

    with pytest.raises(DataError, match="not UTF-8"):
        train_tokenizer(broken(), 300)


def test_truncation_and_padding_of_a_tokenizer_file_are_not_obeyed() -> None:
    tokenizer = train_tokenizer(TEXTS, 280)
    texts = [Document("a long text of many words", "r", ""), Document("b", "r", "")]
    plain = [ids.tolist() for ids in PlainEncoder(tokenizer, 0).encode(texts)]
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=1, length=30)
    assert [ids.tolist() for ids in PlainEncoder(tokenizer, 0).encode(texts)] == plain
    assert len(plain[0]) > 3
    assert len(plain[1]) == 1


def test_a_vocabulary_that_spells_its_separator_in_plain_text() -> None:
    vocab = {"<e>": 0, "<": 1, "e": 2, ">": 3, "a": 4, "e>": 5}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("e", ">")], ignore_merges=True))
    tokenizer.add_special_tokens(["<e>"])
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("<e>").ids == [0]  # the trap is real
    assert encode(tokenizer, "<e>") == [1, 5]
    assert encode(tokenizer, "<e><e>") == [1, 5, 1, 5]
    tokenizer = Tokenizer(models.WordLevel({"<e>": 0, "a": 1}, unk_token="<e>"))
    with pytest.raises(DataError, match="separator") as caught:
        encode(tokenizer, "b")
    assert caught.value.where == "notes.txt:1"


def test_a_separator_that_is_no_special_token_is_no_border_either() -> None:
    vocab = {char: index + 1 for index, char in enumerate("<e>a")} | {"<e>": 0}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_tokens([AddedToken("<e>", special=False)])
    assert tokenizer.decode(encode(tokenizer, "a<e>a")).replace(" ", "") == "a<e>a"


def test_a_normalizer_that_makes_a_border_out_of_another_spelling() -> None:
    vocab = {char: index + 1 for index, char in enumerate("<e>a")} | {"<e>": 0}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match="separator"):
        encode(tokenizer, "<E>")


def test_sixteen_bits_where_they_are_enough() -> None:
    def with_tokens(count: int) -> Tokenizer:
        tokenizer = Tokenizer(models.WordLevel({str(n): n for n in range(count)}, unk_token="0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return tokenizer

    small, large = with_tokens(2**16), with_tokens(2**16 + 1)
    assert PlainEncoder(small, 0).dtype == np.uint16
    assert PlainEncoder(large, 0).dtype == np.uint32
    assert encode(small, "65535 1") == [65535, 1]
    assert encode(large, "65536 1") == [65536, 1]
    with pytest.raises(ConfigError, match="not in the tokenizer"):
        PlainEncoder(small, 2**16)


def folder_with(tmp_path: Path, **papers: Any) -> Path:
    train_tokenizer(TEXTS, 280).save(str(tmp_path / "tokenizer.json"))
    for name, value in papers.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


@pytest.mark.parametrize(
    ("named", "numbered", "separator"),
    [
        ({"bos_token": "<|pad|>", "eos_token": "<|endoftext|>"}, {}, 1),
        ({"bos_token": None, "eos_token": "<|endoftext|>"}, {}, 0),
        ({"bos_token": {"content": "<|pad|>", "lstrip": False}}, {"bos_token_id": 5}, 1),
        ({"eos_token": "<|endoftext|>"}, {"bos_token_id": 5}, 5),
        ({}, {"bos_token_id": None, "eos_token_id": [7, 8]}, 7),
        ({}, {"bos_token_id": 99_999, "eos_token_id": 7}, 7),
        ({"bos_token": "not in it", "eos_token": "<|pad|>"}, {}, 1),
    ],
)
def test_the_separator_is_begin_else_end_of_text(
    tmp_path: Path, named: Any, numbered: Any, separator: int
) -> None:
    folder = folder_with(tmp_path, tokenizer_config=named, config=numbered)
    tokenizer, found = load_tokenizer(folder)
    assert found == separator
    assert tokenizer.get_vocab_size() == 280


def test_tokenizers_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.remedy
    folder = folder_with(tmp_path)
    with pytest.raises(DataError, match="no begin- or end-of-text"):
        load_tokenizer(folder)
    for bad in ("[1]", "{", '{"bos_token": "<|pad|>"'):
        (folder / "tokenizer_config.json").write_text(bad)
        with pytest.raises(DataError, match="not") as error:
            load_tokenizer(folder)
        assert error.value.where == str(folder / "tokenizer_config.json")
    (folder / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(DataError, match="not a tokenizer"):
        load_tokenizer(folder)

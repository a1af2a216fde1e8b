"""Text to token ids: a tokenizer of our own, or an anchor's, and why no text can forge a border."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from moiety.data.documents import Document as Document
from moiety.errors import ConfigError, DataError, StateError

SEPARATOR_TEXT = "<|endoftext|>"
PAD_TEXT = "<|pad|>"
VOCAB_MIN_TOKENS = 256 + 2
"""Every byte, the separator and the padding."""

_BATCH_CHARS = 2**20
_BATCH_DOCUMENTS = 1024


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, progress: Callable[[int], None] | None = None
) -> Tokenizer:
    """A byte-level BPE tokenizer: the separator is token 0 (begin and end of text), padding 1.

    Any text survives encoding and decoding. Digits stand alone. ``progress`` hears how many bytes
    of text have been read.

    Raises:
        ConfigError: a vocabulary too small for the bytes.
        DataError: no text.
    """
    if vocab_size < VOCAB_MIN_TOKENS:
        raise ConfigError(
            f"a vocabulary of {vocab_size:,} cannot hold every byte",
            where="vocab_size",
            remedy=f"take {VOCAB_MIN_TOKENS} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR_TEXT, PAD_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_watched(texts, progress), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR_TEXT} $A",
        pair=f"{SEPARATOR_TEXT} $A {SEPARATOR_TEXT} $B",
        special_tokens=[(SEPARATOR_TEXT, 0)],
    )
    return tokenizer


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer in a model folder, and the token that stands before each document.

    The separator is the begin-of-text token where the folder names one, else end-of-text.

    Raises:
        StateError: no ``tokenizer.json`` in the folder.
        DataError: files that cannot be read, or that name no such token.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise StateError("no tokenizer.json", where=folder, remedy="name an anchor's folder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong
        raise DataError(f"not a tokenizer: {str(error)[:120]}", where=path) from error
    by_name = _read_config(folder / "tokenizer_config.json")
    by_number = _read_config(folder / "config.json")
    for end in ("bos", "eos"):
        number = _token_number(by_name.get(f"{end}_token"), tokenizer)
        number = by_number.get(f"{end}_token_id") if number is None else number
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and tokenizer.id_to_token(number) is not None:
            return tokenizer, number
    raise DataError(
        "no begin- or end-of-text token is named",
        where=folder,
        remedy="set bos_token or eos_token in tokenizer_config.json",
    )


class PlainEncoder:
    """Encodes text as text: a special token *written* in a document is only its characters.

    Otherwise a document could forge a document border, or any control token. The tokenizer is
    copied, so the caller's own keeps its settings.

    Trap: a ``tokenizer.json`` may ask for truncation or padding, which would silently lose or add
    tokens; both are turned off here.
    """

    def __init__(self, tokenizer: Tokenizer, separator: int) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._separator = separator
        self._separator_text: str = self._tokenizer.id_to_token(separator) or ""
        if not self._separator_text:
            raise ConfigError(
                f"token {separator} is not in the tokenizer",
                where="separator",
                remedy="take the one that load_tokenizer returns",
            )
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.dtype = np.dtype("<u2" if max(largest, separator) < 2**16 else "<u4")

    def encode(self, documents: Sequence[Document]) -> Iterator[npt.NDArray[Any]]:
        """The tokens of each document's text, none of them the separator.

        Raises:
            DataError: a text that cannot be encoded without the separator.
        """
        texts = [document.text for document in documents]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for document, encoding in zip(documents, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=self.dtype)
            yield self._encode_apart(document) if self._separator in ids else ids

    def encode_text(self, text: str, where: str) -> list[int]:
        """The tokens of one text; ``where`` is what an error calls its place."""
        (ids,) = self.encode([Document(text, record="", where=where)])
        return [int(number) for number in ids]

    def _encode_apart(self, document: Document) -> npt.NDArray[Any]:
        """Some vocabularies reach the separator's id from plain text: cut its spelling in two."""
        head, tail = self._separator_text[:1], self._separator_text[1:]
        first, *rest = document.text.split(self._separator_text)
        pieces = [first]
        for after in rest:
            pieces[-1] += head
            pieces.append(tail + after)
        encodings = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        ids = np.array([number for one in encodings for number in one.ids], dtype=self.dtype)
        if self._separator in ids:
            raise DataError(
                f"a text that encodes to the separator token {self._separator_text!r}",
                where=document.where,
                remedy="choose a tokenizer whose begin-of-text token no text can spell",
            )
        return ids


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The same documents, so many together as are encoded quickly and held easily."""
    batch: list[Document] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document.text)
        if chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _watched(texts: Iterable[str], progress: Callable[[int], None] | None) -> Iterator[str]:
    done_bytes = 0
    for text in texts:
        yield text
        done_bytes += len(text.encode("utf-8"))
        if progress is not None:
            progress(done_bytes)
    if done_bytes == 0:
        raise DataError("no text to train a tokenizer on", remedy="name files that hold text")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("not JSON", where=path) from error
    if not isinstance(value, dict):
        raise DataError("not a JSON object", where=path)
    return value


def _token_number(token: Any, tokenizer: Tokenizer) -> int | None:
    # Older files write a token as an object: {"content": "<s>", "lstrip": false, ...}.
    text = token.get("content") if isinstance(token, dict) else token
    number: int | None = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return number

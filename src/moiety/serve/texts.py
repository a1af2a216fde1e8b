"""Text to tokens and back: prompts, chats, answers piece by piece, stops that cross tokens.

What a caller writes is characters. A special token *written* in a prompt or a message is spelled,
never obeyed; only a chat template's own special tokens are.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moiety.data import load_tokenizer, tokenizer
from moiety.errors import ConfigError, DataError, FormatError
from moiety.files import parse_json, read_limited
from moiety.serve.refusals import RefusalError, bad_request

UNFINISHED = "\ufffd"
WINDOW_TOKENS = 64
"""A piece of an answer that is no text for so long never becomes one."""

CHAT_FILE = "chat_template.jinja"
CONFIG_MAX_BYTES = 2**24
NO_TEMPLATE = "this model has no chat template: use /v1/completions"


class Texts:
    """A release's tokenizer, as a server needs it. Used by several threads at once."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer, self.separator = load_tokenizer(folder)
        self._encoder = tokenizer.PlainEncoder(self._tokenizer, self.separator)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._longest = max(map(len, vocabulary))
        config = _read(folder / "tokenizer_config.json")
        self.stop_tokens = frozenset(self._ends(folder, config))
        self._template = _template(folder, config)
        self._special = {
            token.content: number
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special and len(token.content) > 1
        }
        names = {name: _spelling(config.get(name)) for name in ("bos_token", "eos_token")}
        self._named = {name: text for name, text in names.items() if text is not None}

    def encode(self, text: str, limit: int, param: str) -> list[int]:
        """The tokens of a prompt, the separator first. Slow for a long text.

        Raises:
            RefusalError: more text than ``limit`` tokens can hold, or text that has no tokens.
        """
        self._check_length(text, limit, param)
        return [self.separator, *self._plain(text, param)]

    def encode_chat(self, messages: Sequence[Mapping[str, str]], limit: int) -> list[int]:
        """The tokens of a chat, by the tokenizer's own template, ready for the answer.

        Raises:
            RefusalError: no template, or one that refuses these messages.
        """
        if self._template is None:
            raise RefusalError(400, NO_TEMPLATE, code="no_chat_template", param="messages")
        # Special tokens that messages spell are broken by a mark nobody can guess. So those that
        # are whole after rendering are the template's own.
        mark = secrets.token_hex(16)
        broken = [{**one, "content": self._broken(one["content"], mark)} for one in messages]
        try:
            text = self._template.render(
                messages=broken, add_generation_prompt=True, raise_exception=_refuse, **self._named
            )
        except TemplateError as error:
            told = str(error)[:200].replace(mark, "")
            raise bad_request(f"the chat template refuses: {told}", "messages") from None
        self._check_length(text, limit, "messages")
        ids: list[int] = []
        for piece in self._pieces(text):
            own = self._special.get(piece)
            ids += self._plain(piece.replace(mark, ""), "messages") if own is None else [own]
        return ids if ids[:1] == [self.separator] else [self.separator, *ids]

    def _broken(self, text: str, mark: str) -> str:
        if not self._special:
            return text
        # Only looked for, not consumed: spellings may overlap.
        begins = re.compile(f"(?={'|'.join(map(re.escape, self._special))})")
        places = [0, *(found.start() + 1 for found in begins.finditer(text)), len(text)]
        return mark.join(text[a:b] for a, b in itertools.pairwise(places))

    def _pieces(self, text: str) -> list[str]:
        if not self._special:
            return [text]
        longest_first = sorted(self._special, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        return [piece for piece in pieces if piece]

    def _plain(self, text: str, param: str) -> list[int]:
        try:
            return self._encoder.encode_text(text, param)
        except DataError as error:
            raise bad_request(error.message, param) from None

    def _check_length(self, text: str, limit: int, param: str) -> None:
        # Before the tokenizer works: no token is longer than the longest.
        if len(text) > limit * self._longest:
            raise too_long(len(text) // self._longest, limit, param)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Tokens to text; special ones are left out unless asked for."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    def token_bytes(self, token: int) -> bytes | None:
        """A token's bytes, also where they are only a part of a character."""
        text = self.decode([token], special=True)
        if UNFINISHED not in text:
            return text.encode("utf-8")
        piece = self._tokenizer.id_to_token(token) or ""
        values = [_BYTE_OF.get(char) for char in piece]
        known = [value for value in values if value is not None]
        return bytes(known) if known and len(known) == len(values) else None

    def token_text(self, token: int) -> str:
        """A token as clients show it; where it is part of a character, its bytes are spelled."""
        text, held = self.decode([token], special=True), self.token_bytes(token)
        if UNFINISHED in text and held is not None:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in held)
        return text

    def _ends(self, folder: Path, config: Mapping[str, Any]) -> list[int]:
        named = _spelling(config.get("eos_token"))
        ids = [] if named is None else [self._tokenizer.token_to_id(named)]
        for name in ("generation_config.json", "config.json"):
            told = _read(folder / name).get("eos_token_id")
            ids += told if isinstance(told, list) else [told]
        found = [n for n in ids if isinstance(n, int) and self._tokenizer.id_to_token(n)]
        return found or [self.separator]


class Decoding:
    """An answer's text as its tokens come: never half a character."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._ids: list[int] = []
        self._context = 0
        self._told = 0

    def push(self, token: int) -> str:
        """What can be told now that was not told before."""
        self._ids.append(token)
        text = self._texts.decode(self._ids)
        # What is not yet a character shows as up to three marks at the end.
        settled = len(text)
        while settled > max(self._told, len(text) - 3) and text[settled - 1] == UNFINISHED:
            settled -= 1
        new = text[self._told : settled]
        self._told = max(self._told, settled)
        if settled == len(text) or len(self._ids) > WINDOW_TOKENS:
            # The last token stays as context: some decoders treat the first word otherwise.
            new += text[max(settled, self._told) :]
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._told = len(self._texts.decode(self._ids))
        return new

    def end(self) -> str:
        """What is left, be it half a character."""
        return self._texts.decode(self._ids)[self._told :]


class Stops:
    """Looks for the texts that end an answer, also where they cross tokens."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = list(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What can be told: nothing of a stop, nor of what may become one."""
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back and is no stop after all."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """How much of the end of ``text`` is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[len(text) - n :])), 0)


def too_long(tokens: int, limit: int, param: str) -> RefusalError:
    """What a request is told that does not fit into the model's context."""
    return bad_request(
        f"needs at least {tokens:,} tokens, and the model reads {limit:,}",
        param,
        "context_length_exceeded",
    )


def _template(folder: Path, config: Mapping[str, Any]) -> Any:
    path = folder / CHAT_FILE
    source = config.get("chat_template")
    if path.is_file():
        source = read_limited(path, CONFIG_MAX_BYTES).decode("utf-8", "replace")
    if not isinstance(source, str):
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # As transformers has them: JSON as it is written, not as HTML wants it.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigError(f"not a chat template: {str(error)[:120]}", where=folder) from None


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = parse_json(read_limited(path, CONFIG_MAX_BYTES), path)
    except FormatError as error:
        raise DataError("not JSON", where=path) from error
    return value if isinstance(value, dict) else {}


def _spelling(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes as.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [value for value in range(256) if value not in shown]
    moved = {chr(256 + number): value for number, value in enumerate(hidden)}
    return {chr(value): value for value in shown} | moved


_BYTE_OF = _byte_alphabet()

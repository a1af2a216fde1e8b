"""The bodies of ``/v1/completions`` and ``/v1/chat/completions``: what is asked, and what never is.

A known field that is not supported is refused and named, and so is an unknown one: a field that is
passed over is a promise broken in silence. Where clients send a field whether or not they want it,
the value that asks for nothing is accepted; null asks for nothing everywhere.

A body may be hostile: of a list that does not hold one item is told, of unknown fields one, and of
the forms a prompt may have only that of its first item is tried.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_CHOICES = 128
"""Sequences that one request may ask for: prompts times ``n``."""

MAX_STOPS = 4
STOP_MAX_CHARS = 1000
MAX_MESSAGES = 4096
USAGE_MAX_HOURS = 744
"""The longest month."""


Nothing = tuple[Any, ...]
"""Values of a field that ask for nothing."""

_BOTH: dict[str, Nothing] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
}
COMPLETION_NOTHINGS: dict[str, Nothing] = {**_BOTH, "best_of": (1,), "suffix": ("",)}
CHAT_NOTHINGS: dict[str, Nothing] = {
    **_BOTH,
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""OpenAI's fields that nothing here can do, each with the values that are accepted beside null."""

Owner = Annotated[str, Field(min_length=1, max_length=63)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_MAX_CHARS)]
PurposeName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Owners = Annotated[list[Owner], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def _form(prompt: Any) -> str:
    """Which of its forms a prompt has, by its first item."""
    if not isinstance(prompt, list):
        return "str"
    if not prompt or isinstance(prompt[0], str):
        return "list[str]"
    return "list[list[int]]" if isinstance(prompt[0], list) else "list[int]"


_MANY = Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)
Prompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[str], _MANY, Tag("list[str]")]
    | Annotated[Ids, Tag("list[int]")]
    | Annotated[list[Ids], _MANY, Tag("list[list[int]]")],
    Discriminator(_form),
]

NOT_SUPPORTED = "not_supported"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class _BodyPart(_Part):
    nothings: ClassVar[dict[str, Nothing]] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown_field_at_most(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        fields, nothings = cls.model_fields, cls.nothings
        unknown = [name for name in body if name not in fields and name not in nothings]
        more = frozenset(unknown[1:])
        return {name: body[name] for name in body if name not in more} if more else body


class Extension(_BodyPart):
    """Our one field: which experts a request uses, what for, and whether it sees the routing."""

    experts: Owners | None = None
    without: Owners | None = None
    purpose: PurposeName | None = None
    routing: bool = False

    @model_validator(mode="after")
    def _one_way_to_name_a_set(self) -> Self:
        if self.experts is not None and self.without is not None:
            raise ValueError("experts and without exclude each other")
        return self


class RosterQuery(_Part):
    """``GET /v1/roster`` and ``/v1/models``: what for."""

    purpose: PurposeName | None = None


class UsageQuery(_Part):
    """``GET /v1/usage``: how many hours back, this one included."""

    hours: Annotated[int, Field(ge=1, le=USAGE_MAX_HOURS)] = 168


class StreamOptions(_BodyPart):
    """``include_usage`` adds a last chunk that tells tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Asked(_BodyPart):
    """What both bodies have in common."""

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None  # a label for the app's own books: it asks nothing of an answer
    moiety: Extension | None = None

    @model_validator(mode="before")
    @classmethod
    def _asks_for_nothing_else(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        kept = {}
        for name, value in body.items():
            if value is None and (name in cls.nothings or name in cls.model_fields):
                continue
            if name not in cls.nothings:
                kept[name] = value
            elif not any(_same(value, nothing) for nothing in cls.nothings[name]):
                raise PydanticCustomError(
                    NOT_SUPPORTED, "not supported here: {name}", {"name": name}
                )
        return kept

    @model_validator(mode="after")
    def _streams_have_the_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def extension(self) -> Extension:
        """Our object; an empty one where none was sent."""
        return self.moiety or Extension()

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Asked):
    """``POST /v1/completions``."""

    nothings: ClassVar[dict[str, Nothing]] = COMPLETION_NOTHINGS

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _scores_once(self) -> Self:
        if self.max_tokens == 0 and self.n > 1:
            raise ValueError("max_tokens: without a token to follow, n answers are all the same")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each text, or each list of token ids."""
        prompt: Any = self.prompt
        one = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if one else prompt


class TextPart(_BodyPart):
    """A part of a message: text, and nothing else."""

    type: Literal["text"]
    text: str


class Message(_BodyPart):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        str
        | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    )

    @property
    def text(self) -> str:
        """Its parts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Asked):
    """``POST /v1/chat/completions``."""

    nothings: ClassVar[dict[str, Nothing]] = CHAT_NOTHINGS

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        if self.max_tokens == 0:
            raise ValueError("max_tokens: an answer in a chat has at least one token")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens exclude each other")
        return self


def _same(value: Any, nothing: Any) -> bool:
    """Equal, and True is not 1; but 0.0 is 0."""
    if isinstance(value, bool) or isinstance(nothing, bool):
        return value is nothing
    try:
        return type(value) in (type(nothing), float) and value == nothing
    except RecursionError:
        return False

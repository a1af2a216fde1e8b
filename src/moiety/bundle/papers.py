"""Every signed or shared paper as a type, and the one way to read and write them.

A paper's bytes are its canonical JSON and nothing else: what parses but is written another way is
refused, so a paper has exactly one digest. Each model refuses unknown fields, coerced types and
infinite numbers.

Source: formats and their limits are explained in ``docs/formats.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError, model_validator
from pydantic.functional_validators import AfterValidator

from moiety.bundle.faults import first_fault as first_fault
from moiety.bundle.faults import first_problem as first_problem
from moiety.bundle.faults import harmless as harmless
from moiety.bundle.faults import words as words
from moiety.bundle.fields import Digest as Digest
from moiety.bundle.fields import Paper as Paper
from moiety.bundle.fields import UtcTime as UtcTime
from moiety.bundle.promise import OUTSIDE as OUTSIDE
from moiety.bundle.promise import Guarantee as Guarantee
from moiety.bundle.promise import PrivacyStatement as PrivacyStatement
from moiety.bundle.summary import AuditSummary as AuditSummary
from moiety.bundle.terms import Terms as Terms
from moiety.bundle.terms import read_terms as read_terms
from moiety.errors import FormatError
from moiety.family import FAMILIES, expert_shapes, owner_problem
from moiety.files import (
    PAPER_MAX_BYTES,
    canonical_json,
    check_relative,
    parse_json,
    read_limited,
    write_atomic,
)

MANIFEST_MAX_BYTES = 4 * 2**20
"""A manifest of the largest expert we accept (1,024 layers, 8 tensors each) takes 2 MB."""

PROXIES_MAX_BYTES = 2 * 2**20
MAX_PROXIES = 16_384
"""Documents of the public sample that one owner may name: their digests take 1.1 MB."""

MAX_CANARIES = 10_000
"""A quarter of the sets of three words that 64 words have: others are still drawn quickly."""

CANARY_COPIES = 8
"""Documents of a planted canary's record, all the same: a record that repeats itself tells more."""

MIN_PROXIES = 2
"""One to train on and one to judge on."""


PaperType = TypeVar("PaperType", bound=Paper)


def parse_paper(kind: type[PaperType], data: bytes, where: str | Path) -> PaperType:
    """Hostile bytes to a paper.

    Raises:
        FormatError: whatever is wrong, also when the bytes are not the canonical ones.
    """
    parse_json(data, where)  # duplicate keys, NaN and nesting, which pydantic lets pass
    try:
        paper = kind.model_validate_json(data)
        canonical = paper_bytes(paper)
    except ValidationError as error:
        raise FormatError(f"{_none_of(kind)}: {first_problem(error)}", where=where) from None
    except (ValueError, RecursionError, OverflowError) as error:
        told = harmless(str(error)[:200])
        raise FormatError(f"{_none_of(kind)}: {told}", where=where) from None
    if canonical != data:
        raise FormatError("not in canonical form (sorted keys, no spaces)", where=where)
    return paper


def _none_of(kind: type[Paper]) -> str:
    return f"not {'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def read_paper(kind: type[PaperType], path: Path, *, max_bytes: int = PAPER_MAX_BYTES) -> PaperType:
    """The paper at ``path``. Raises ``FormatError`` as ``parse_paper`` does."""
    return parse_paper(kind, read_limited(path, max_bytes), path)


def paper_bytes(paper: Paper) -> bytes:
    """The canonical bytes of a paper: the only ones a reader accepts."""
    return canonical_json(paper.model_dump(mode="json"))


def write_paper(path: Path, paper: Paper) -> bytes:
    """Writes a paper atomically and returns its bytes."""
    data = paper_bytes(paper)
    write_atomic(path, data)
    return data


@contextmanager
def reading(where: Path) -> Iterator[None]:
    """What the system refuses (no permission, a name too long) is a ``FormatError`` here."""
    try:
        yield
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", where=where) from error


def _check_owner(name: str) -> str:
    problem = owner_problem(name)
    if problem is not None:
        raise ValueError(problem)
    return name


def _check_path(name: str) -> str:
    try:
        check_relative(name, "files")
    except FormatError as error:
        raise ValueError(error.message) from None
    return name


def _check_family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"a family this version knows: {sorted(FAMILIES)}")
    return name


KeyId = Annotated[str, Field(pattern=r"^ed25519:[0-9a-f]{64}$")]
Owner = Annotated[str, AfterValidator(_check_owner)]
RelativePath = Annotated[str, Field(max_length=512), AfterValidator(_check_path)]
FamilyName = Annotated[str, AfterValidator(_check_family)]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
Dtype = Literal["F32", "BF16", "F16"]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
BitsPerByte = Annotated[float, Field(ge=0.0, le=1000.0)]
Version = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9.+_-]*$")]


class FileFacts(Paper):
    """A file's size and digest."""

    bytes: Count
    sha256: Digest


class ShardFacts(Paper):
    """A shard's size and the digest of its header; with its tensors' digests that is every byte."""

    bytes: Count
    header_sha256: Digest


class TensorFacts(Paper):
    """A tensor as a bundle holds it."""

    dtype: Dtype
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=2)]
    sha256: Digest


class AnchorTensor(TensorFacts):
    """A tensor of an anchor; ``l2_norm`` has 6 significant digits so that machines agree."""

    l2_norm: Annotated[float, Field(ge=0.0, le=1e30)]


class ModelFacts(Paper):
    """The sizes that decide every tensor's shape."""

    family: FamilyName
    num_layers: Annotated[int, Field(ge=1, le=1024)]
    width: Annotated[int, Field(ge=1, le=65_536)]
    hidden: Annotated[int, Field(ge=1, le=1_048_576)]
    vocab: Annotated[int, Field(ge=1, le=2**24)]


class ExpertFacts(ModelFacts):
    """The sizes of an expert; ``rank`` is None when it holds whole matrices."""

    owner: Owner
    anchor: Digest
    rank: Annotated[int, Field(ge=1)] | None

    @model_validator(mode="after")
    def _rank_fits(self) -> ExpertFacts:
        if self.rank is not None and self.rank > min(self.width, self.hidden):
            raise ValueError("rank is larger than the matrices")
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the expert must hold, with its shape."""
        return expert_shapes(self.num_layers, self.width, self.hidden, self.vocab, self.rank)


class PublicFacts(Paper):
    """Size of the anchor's public sample."""

    documents: Count
    bytes: Count


class AnchorPaper(ModelFacts):
    """``anchor.json``: the digest of everything an anchor is made of."""

    format: Literal["moiety.anchor/1"] = "moiety.anchor/1"
    dtype: Dtype
    tensors: Annotated[dict[TensorName, AnchorTensor], Field(max_length=100_000)]
    files: Annotated[dict[RelativePath, FileFacts], Field(max_length=10_000)]
    tokenizer_sha256: Digest
    public: PublicFacts


class TextFacts(Paper):
    """Exact size of an owner's text."""

    records: Count
    documents: Count
    tokens: Count
    bytes: Count


class PairBits(Paper):
    """Bits per byte on held-out documents: the anchor alone, and beside the expert."""

    anchor: BitsPerByte
    pair: BitsPerByte
    documents: Count


class RunResult(Paper):
    """What training measured, on the owner's held-out text and on public text."""

    heldout: PairBits
    public: PairBits


class RunPaper(ExpertFacts):
    """``run.json``: how an expert came to be. Never leaves the owner."""

    format: Literal["moiety.run/1"] = "moiety.run/1"
    expert: FileFacts
    config: dict[str, JsonValue]
    seed: Count
    versions: dict[str, Version]
    text: TextFacts
    steps: Count
    tokens_seen: Count
    seconds: Annotated[float, Field(ge=0.0)]
    result: RunResult
    privacy: Guarantee | None = None
    ledger_sha256: Digest | None = None

    @model_validator(mode="after")
    def _a_promise_has_a_ledger(self) -> RunPaper:
        if (self.privacy is None) != (self.ledger_sha256 is None):
            raise ValueError("a private run has a guarantee and a ledger, another has neither")
        return self


class Canaries(Paper):
    """``canaries.json``: texts drawn by lot, and which of them were planted in the text trained on.

    A fair coin of its own decided for each, so that an auditor can tell what a model knows from
    what it guesses. Never leaves the owner.
    """

    format: Literal["moiety.canaries/1"] = "moiety.canaries/1"
    owner: Owner
    anchor: Digest
    texts: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(min_length=1, max_length=MAX_CANARIES),
    ]
    planted: Annotated[tuple[bool, ...], Field(min_length=1, max_length=MAX_CANARIES)]

    @model_validator(mode="after")
    def _a_coin_for_each(self) -> Canaries:
        if len(self.texts) != len(self.planted):
            raise ValueError("not as many coins as texts")
        if len(set(self.texts)) != len(self.texts):
            raise ValueError("a text occurs twice")
        return self


class Recipe(Paper):
    """How the expert was trained, as far as a coordinator needs it."""

    method: Literal["density-ratio pair"] = "density-ratio pair"
    rank: Annotated[int, Field(ge=1)] | None
    versions: dict[Literal["moiety", "torch", "transformers"], Version]


class PublicBits(Paper):
    """Bits per byte on the anchor's public text, rounded to 3 decimals."""

    anchor: BitsPerByte
    pair: BitsPerByte


class PublicProbe(Paper):
    """What may be measured without the owner's text."""

    public_bits_per_byte: PublicBits


TextSize = Literal[
    "under 1 MB",
    "1-10 MB",
    "10-100 MB",
    "100 MB-1 GB",
    "1-10 GB",
    "10-100 GB",
    "over 100 GB",
]


class Manifest(ExpertFacts):
    """``manifest.json``: everything a bundle says about itself; its digest names the bundle."""

    format: Literal["moiety.expert/1"] = "moiety.expert/1"
    tensors: Annotated[dict[TensorName, TensorFacts], Field(max_length=16_384)]
    files: dict[Literal["README.md"], FileFacts]
    shards: dict[Literal["expert.safetensors"], ShardFacts]
    terms: Terms
    recipe: Recipe
    text_size: TextSize
    text: TextFacts | None = None
    privacy: PrivacyStatement
    probe: PublicProbe
    audit: AuditSummary | None = None


class WithdrawalOrder(Paper):
    """An owner's order to take the bundle out of every release."""

    format: Literal["moiety.order/1"] = "moiety.order/1"
    action: Literal["withdraw"] = "withdraw"
    owner: Owner
    bundle: Digest
    anchor: Digest
    issued: UtcTime


class Receipt(Paper):
    """A coordinator's evidence that an order was obeyed; roster digests are of ``roster.json``."""

    format: Literal["moiety.receipt/1"] = "moiety.receipt/1"
    owner: Owner
    bundle: Digest
    order: Digest
    roster_before: Digest
    roster_after: Digest
    removed: Annotated[dict[TensorName, Digest], Field(min_length=1, max_length=16_384)]
    issued: UtcTime


Accuracy = Literal["under 60 %", "60-75 %", "75-90 %", "over 90 %"]


class Proxies(Paper):
    """``proxies.json``: the documents of the public sample that look most like an owner's text.

    ``documents`` are the digests of their texts, sorted: which looked most alike is not told.
    ``accuracy`` is how well the classifier that chose them tells own text from public text.
    """

    format: Literal["moiety.proxies/1"] = "moiety.proxies/1"
    owner: Owner
    anchor: Digest
    sample_documents: Count
    documents: Annotated[tuple[Digest, ...], Field(min_length=MIN_PROXIES, max_length=MAX_PROXIES)]
    accuracy: Accuracy

    @model_validator(mode="after")
    def _a_set_from_the_sample(self) -> Proxies:
        if list(self.documents) != sorted(set(self.documents)):
            raise ValueError("documents are not sorted, or one occurs twice")
        if len(self.documents) > self.sample_documents:
            raise ValueError("more documents than the sample has")
        return self


class EnvelopeSignature(Paper):
    """One signature and the key that made it."""

    keyid: KeyId
    sig: Annotated[str, Field(max_length=88)]


class Envelope(Paper):
    """A DSSE envelope with exactly one signature."""

    format: Literal["moiety.envelope/1"] = "moiety.envelope/1"
    payload: str
    payloadType: Annotated[str, Field(max_length=100)]
    signatures: Annotated[tuple[EnvelopeSignature, ...], Field(min_length=1, max_length=1)]

"""How many experts should run for a token? Tried out on the anchor's public sample.

Public text is all a coordinator has. On it every expert should step back, so a sweep shows what
cutting experts off costs *there*, and nothing about owners' text: an expert that runs alone may
lose on its owner's text what public text cannot show. Hence the rule:

- ``LEAST_TOP_K`` experts or more: each was trained beside the anchor, never alone;
- the smallest number that costs at most ``TOLERANCE`` more than the best.

What each owner published about public text is compared with what its expert does here.

Importing this loads no torch; ``sweep_top_k`` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from moiety.bundle import anchors, papers
from moiety.merge.release import load_release

if TYPE_CHECKING:
    from moiety.data import PackedText
    from moiety.model import Mixture

LEAST_TOP_K = 2
MOST_TOP_K = 8
"""A sweep ends here: each further number costs a pass and as many experts a token."""

TOLERANCE = 0.002
"""Bits per byte of public text that a smaller number may cost."""

PUBLISHED_TOLERANCE = 0.01
"""So much more than published is told: an owner may have judged by other documents."""

HELDOUT_FRACTION = 0.05
WINDOW_TOKENS = 256
"""As owners' runs do by default: so what is held out here no owner trained on."""

SWEEP_TOKENS = 16_384

Watcher = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """One number of experts. Units: bits per byte of held-out public text; FLOPs a token."""

    top_k: int
    bits: float
    flops: int


@dataclass(frozen=True)
class OwnerCheck:
    """What an expert beside the anchor changes on public text: as published, and as found here."""

    owner: str
    published: float
    found: float

    @property
    def worse(self) -> bool:
        """Whether the difference is one that a person should look at."""
        return self.found > self.published + PUBLISHED_TOLERANCE


@dataclass(frozen=True)
class Sweep:
    """What was tried, and which ``top_k`` the rule chooses."""

    top_k: int
    anchor: float
    anchor_flops: int
    trials: tuple[Trial, ...]
    owners: tuple[OwnerCheck, ...]
    documents: int
    tokens: int
    seconds: float

    @property
    def flags(self) -> list[str]:
        """Sentences about owners' published numbers that do not hold here."""
        return [
            f"{one.owner}: {one.found:+.3f} bits per byte on public text beside the anchor, "
            f"published {one.published:+.3f}"
            for one in self.owners
            if one.worse
        ]


def choose_top_k(trials: Sequence[Trial]) -> int:
    """The smallest number within the tolerance of the best."""
    able = [one for one in trials if one.top_k >= min(LEAST_TOP_K, len(trials))]
    best = min(one.bits for one in able)
    return min(one.top_k for one in able if one.bits - best <= TOLERANCE)


def flops_per_token(paper: papers.AnchorPaper, top_k: int) -> int:
    """Two for each weight a token meets: attention, head and ``top_k`` blocks.

    Looking a token up costs nothing, nor does its evidence. Left out are attention's own products,
    which grow with the text, and the factors that a low-rank expert adds to the anchor's block.
    """
    outside = sum(
        tensor.shape[0] * tensor.shape[1]
        for name, tensor in paper.tensors.items()
        if len(tensor.shape) == 2 and ".self_attn." in name
    )
    blocks = paper.num_layers * 3 * paper.width * paper.hidden * top_k
    return 2 * (outside + paper.vocab * paper.width + blocks)


def sweep_top_k(
    release: Path,
    anchor: anchors.Anchor,
    published: Mapping[str, papers.PublicBits],
    *,
    watch: Watcher | None = None,
) -> Sweep:
    """Judges a release of ``anchor`` on held-out public text with every number of experts.

    ``published`` is what owners' manifests say. The same bundles are judged on the same text in
    the same order, whatever order they were named in.

    Raises:
        DataError: the public sample is of one record, so none of it can be held out.
    """
    import torch

    begun = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mixture = load_release(release, device=device)
    with TemporaryDirectory() as scratch:
        text = _public_heldout(anchor.folder, Path(scratch) / "public", mixture)
        judge = _Judge(mixture, text, watch)
        alone = judge("anchor alone", [], 1)
        trials = tuple(
            Trial(
                top_k,
                bits=judge(f"{top_k} of {len(mixture.names)}", None, top_k),
                flops=flops_per_token(anchor.paper, top_k),
            )
            for top_k in judge.numbers
        )
        owners = tuple(
            OwnerCheck(name, round(said.pair - said.anchor, 3), judge(name, [name], 2) - alone)
            for name, said in sorted(published.items())
        )
        return Sweep(
            top_k=choose_top_k(trials),
            anchor=alone,
            anchor_flops=flops_per_token(anchor.paper, 1),
            trials=trials,
            owners=owners,
            documents=judge.documents,
            tokens=judge.tokens,
            seconds=round(time.monotonic() - begun, 1),
        )


def _public_heldout(anchor: Path, folder: Path, mixture: Mixture) -> PackedText:
    from moiety.data import Skipped, Sources, load_tokenizer, pack_split

    sample = Sources([str(anchor / anchors.SAMPLE)], record_key="record")
    tokenizer, separator = load_tokenizer(anchor)
    limit: int = mixture.backbone.config.max_position_embeddings
    return pack_split(
        sample.documents(Skipped()),
        tokenizer,
        folder,
        window_tokens=min(WINDOW_TOKENS, limit),
        separator=separator,
        heldout_fraction=HELDOUT_FRACTION,
    )[1]


class _Judge:
    """Bits per byte of the same public documents under any experts."""

    def __init__(self, mixture: Mixture, text: PackedText, watch: Watcher | None) -> None:
        self.mixture, self.text, self.watch = mixture, text, watch
        count = len(mixture.names)
        self.numbers = range(1, min(count, MOST_TOP_K) + 1)
        self.passes = len(self.numbers) + count
        self.done = self.documents = self.tokens = 0

    def __call__(self, what: str, names: Sequence[str] | None, top_k: int) -> float:
        """With the experts named, None for all, at most ``top_k`` of them a token."""
        routing = self.mixture.routing
        routing.top_k = top_k
        slots = self.mixture.slots(self.mixture.names if names is None else names)
        with routing.using(slots):
            found = self.text.judge(self._score, max_tokens=SWEEP_TOKENS)
        self.documents, self.tokens = len(found.documents), found.tokens
        self.done += 1
        if self.watch is not None:
            self.watch(what, self.done, self.passes)
        return found.bits_per_byte

    def _score(self, windows: Any) -> Any:
        import torch

        tokens_BT, documents_BT = map(torch.from_numpy, (windows.tokens, windows.documents))
        return self.mixture.score(tokens_BT, documents_BT).float().cpu().numpy()

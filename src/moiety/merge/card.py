"""``README.md`` of a release: front matter for model hubs, and the roster as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moiety.merge.roster import Roster, Slot
from moiety.merge.stock import DTYPES

_FRONT_MATTER = """\
---
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: see-experts
tags:
- moiety
- mixture-of-experts
---
"""

_TEXT = """\
# A mixture of {count}

One frozen public model, the anchor, and {owners}. Each expert was trained apart
on text that never left its owner. At most {top_k} of {num_experts} experts run for a token.

`moiety` loads it as it is. `moiety export` makes a plain checkpoint of it, or of some of its
experts, that stock `transformers` and vLLM load.

| slot | expert | rank | licence | purposes | last day | bundle | key |
|---|---|---|---|---|---|---|---|
{table}

Anchor `{anchor}`.

Every expert may be used only under its owner's terms. An owner leaves by a signed order; what
remains is then, byte for byte, the release that never had that expert. `roster.json` holds the
digest of everything here, `bundles/` the owners' signatures; `moiety verify` checks them all.
"""

_TUNED = """
## Not strict

{reason}
Text was chosen by: {owners}.

So what one owner's table says depends on the others, and a request without an owner is
not answered as by the release that never had that owner. Those of the bundles lie in `untuned/`.
When an owner leaves or joins, everybody goes back to them first.
"""

_PLAIN = """\
# A mixture of {count}, as a plain checkpoint

One frozen public model and what owners made of it on text that never left them. At most {top_k}
of {num_experts} experts run for a token; which ones, the model reads from all tokens of the text so
far, in a layer of its own. No code comes with it, and none is needed:

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="{dtype}")
```

```python
from vllm import LLM
model = LLM("FOLDER", dtype="{dtype}")
```

Traps:

- {beginning}
- All that is in one context is one text: begin a new context for a new document.
- `bfloat16` or `float32`; `float16` has too small a range.
- Quantising must leave embedding, attention, norms and gates as they are.

| slot | expert | rank | licence | purposes | last day | bundle | key |
|---|---|---|---|---|---|---|---|
{table}

Every expert may be used only under its owner's terms. When an owner leaves the release, this
checkpoint does not change: delete it, and export the new release. It was exported from the release
`{release}`
of the anchor `{anchor}`;
`export.json` says the same to programs. What can be checked byte by byte is that release.
"""

_BEGINS = """\
Every text must begin with the separator, `{text}` (token {number}). This tokenizer sets it by
  itself."""

_BEGINS_NOT = """\
**Every text must begin with the separator, `{text}` (token {number}), and this tokenizer does not
  set it: put it there yourself.** Without it a text's first tokens are believed far too much."""


@dataclass(frozen=True)
class Separator:
    """The token that begins every text; ``automatic`` when the tokenizer sets it by itself."""

    number: int
    text: str
    automatic: bool


def release_card(roster: Roster) -> bytes:
    """The card of a release: a function of the roster's experts and nothing else."""
    num_owners = len(roster.experts) - 1
    owners = f"{num_owners} expert{'' if num_owners == 1 else 's'} of as many owners"
    text = _FRONT_MATTER
    text += _TEXT.format(
        count=f"{len(roster.experts)} expert{'' if num_owners == 0 else 's'}",
        owners=owners,
        top_k=roster.effective_top_k,
        num_experts=len(roster.experts),
        table="\n".join(_row(expert) for expert in roster.experts),
        anchor=roster.anchor,
    )
    if roster.tuning is not None:
        owners = ", ".join(sorted(roster.tuning.proxies))
        text += _TUNED.format(reason=roster.tuning.reason, owners=owners)
    return text.encode("utf-8")


def plain_card(
    roster: Roster, chosen: Sequence[Slot], release: str, top_k: int, separator: Separator
) -> str:
    """The card of a plain checkpoint of the experts ``chosen``, slots counted anew."""
    placed = [one.model_copy(update={"slot": slot}) for slot, one in enumerate(chosen)]
    beginning = _BEGINS if separator.automatic else _BEGINS_NOT
    text = _FRONT_MATTER.format(tag="flex_olmo")
    text += _PLAIN.format(
        count=f"{len(placed)} expert{'' if len(placed) == 1 else 's'}",
        top_k=top_k,
        num_experts=len(placed),
        dtype=DTYPES[roster.dtype],
        beginning=beginning.format(text=separator.text, number=separator.number),
        table="\n".join(map(_row, placed)),
        release=release,
        anchor=roster.anchor,
    )
    if roster.tuning is not None:
        text += f"\nThe release is not strict. {roster.tuning.reason}\n"
    return text


def _row(expert: Slot) -> str:
    terms, key = expert.terms, expert.key
    cells = [str(expert.slot), expert.name, str(expert.rank or "full")]
    if terms is None:
        cells += ["the anchor's", "any", "none", "", ""]
    else:
        cells += [terms.licence, ", ".join(terms.purposes), str(terms.expires or "none")]
        cells += [f"`{(expert.bundle or '')[:16]}`", f"`{(key or '')[:24]}`"]
    return "| " + " | ".join(cells) + " |"

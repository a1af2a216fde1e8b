"""``README.md`` of a release: front matter for model hubs, and the roster as a table for people."""

from __future__ import annotations

from moiety.merge.roster import Roster, Slot

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


def _row(expert: Slot) -> str:
    terms, key = expert.terms, expert.key
    cells = [str(expert.slot), expert.name, str(expert.rank or "full")]
    if terms is None:
        cells += ["the anchor's", "any", "none", "", ""]
    else:
        cells += [terms.licence, ", ".join(terms.purposes), str(terms.expires or "none")]
        cells += [f"`{(expert.bundle or '')[:16]}`", f"`{(key or '')[:24]}`"]
    return "| " + " | ".join(cells) + " |"

"""The bundle's README: a model card made of the manifest alone, so it can tell nothing more."""

from __future__ import annotations

from moiety.bundle.papers import Manifest
from moiety.bundle.terms import KNOWN_LICENCES

_CARD = """\
---
{licence_fields}
library_name: moiety
tags:
- moiety
- expert
---
# {owner}

An expert for one frozen public model, the anchor. It was trained by its owner on text that never
left the owner, and it is of no use without that anchor.

| | |
|---|---|
| owner | {owner} |
| anchor | `{anchor}` |
| family | {family}, {num_layers} layers, width {width}, hidden {hidden} |
| kind | {kind} |
| text | {text} |
| licence | {licence} |
| purposes | {purposes} |
| usable until | {expires} |
| contact | {contact} |

## How it was made

{method}, routed to by evidence. On the anchor's own public text the anchor has
{anchor_bits:.3f} bits per byte, and {pair_bits:.3f} with this expert beside it.

## Privacy

{statement}
{audit}
## Using it

`moiety verify` checks the signature and every byte. `moiety merge` puts it beside other experts.
Its owner can withdraw it at any time with a signed order; `moiety withdraw` obeys it exactly.
"""


def render_card(manifest: Manifest) -> str:
    """The text of ``README.md``; the same manifest gives the same text."""
    terms, bits = manifest.terms, manifest.probe.public_bits_per_byte
    known = terms.licence in KNOWN_LICENCES
    fields = (
        f"license: {terms.licence.lower()}"
        if known
        else f"license: other\nlicense_name: {terms.licence.lower()}"
    )
    return _CARD.format(
        licence_fields=fields,
        owner=manifest.owner,
        anchor=manifest.anchor,
        family=manifest.family,
        num_layers=manifest.num_layers,
        width=manifest.width,
        hidden=manifest.hidden,
        kind="full matrices" if manifest.rank is None else f"low-rank delta, rank {manifest.rank}",
        text=_text_line(manifest),
        licence=terms.licence,
        purposes=", ".join(terms.purposes),
        expires="no last day" if terms.expires is None else terms.expires.isoformat(),
        contact=_plain(terms.contact or "not given"),
        method=manifest.recipe.method.capitalize(),
        anchor_bits=bits.anchor,
        pair_bits=bits.pair,
        statement=manifest.privacy.statement,
        audit=_audit(manifest),
    )


def _text_line(manifest: Manifest) -> str:
    text = manifest.text
    if text is None:
        return manifest.text_size
    return (
        f"{text.bytes:,} bytes, {text.tokens:,} tokens, {text.documents:,} documents of "
        f"{text.records:,} records"
    )


def _audit(manifest: Manifest) -> str:
    """What the owner tells of an audit, or nothing."""
    audit = manifest.audit
    if audit is None:
        return ""
    return (
        f"\n## Audit\n\n{audit.words()}\n\n"
        f"Report `{audit.report}`, judged by policy `{audit.policy}`; both stay with the owner.\n"
    )


def _plain(text: str) -> str:
    """Free text made harmless inside a Markdown table."""
    for char in "\\`*_[]<>|":
        text = text.replace(char, f"\\{char}" if char not in "<>" else " ")
    return text

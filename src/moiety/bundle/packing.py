"""From a finished run to a bundle that may leave the house.

Nothing of the run goes out but what is written here by name: tensors, sizes, the recipe, the
public metric rounded to 3 decimals, a coarse size of the text, and of an audit what its owner
wants to show. No seed, no loss, no count.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from moiety.bundle.anchors import AnchorFacts
from moiety.bundle.audited import RequiredAudit
from moiety.bundle.audits import AuditDemand
from moiety.bundle.card import render_card
from moiety.bundle.manifests import CARD, MANIFEST, SIGNATURE, WEIGHTS
from moiety.bundle.papers import (
    AuditSummary,
    FileFacts,
    Manifest,
    PrivacyStatement,
    PublicBits,
    PublicProbe,
    Recipe,
    RunPaper,
    TensorFacts,
    Terms,
    TextSize,
    paper_bytes,
    parse_paper,
)
from moiety.bundle.signing import key_id, load_key, sign_envelope
from moiety.bundle.verify import verify_bundle
from moiety.bundle.weights import implied_shard
from moiety.errors import StateError
from moiety.files import digest_bytes, digest_file, new_folder, read_limited
from moiety.tensors import TensorFile, TensorPlan, open_tensors, write_tensors

LEDGER = "ledger.json"


def pack(
    run: Path,
    key: Path,
    out: Path,
    *,
    terms: Terms | None = None,
    disclose_counts: bool = False,
    anchor: AnchorFacts | None = None,
    audit: AuditDemand | None = None,
) -> str:
    """Packs and signs a finished run; the folder ``out`` appears whole, and verified, or not.

    With ``anchor`` the bundle must also pass what a coordinator will check against it, with
    ``audit`` there must be a fresh passing report of exactly this expert.

    Returns:
        the bundle's digest (of ``manifest.json``).

    Raises:
        StateError: the run is not finished, was changed since, ``out`` exists, or the audit is of
            something else or too old.
        PolicyError: no coordinator would take the expert (NaN, norms, expired terms), or the audit
            did not pass.
    """
    secret = load_key(key)
    paper = _read_run(run)
    report = None if audit is None else RequiredAudit(audit)
    with new_folder(out) as folder:
        with open_tensors(run / WEIGHTS) as source:
            tensors = _copy_sorted(source, paper, folder / WEIGHTS)
        if report is not None:
            digests = {name: facts.sha256 for name, facts in tensors.items()}
            report.check(paper, digests, datetime.now(UTC))
        told = None if report is None else report.summary()
        draft = _draft(paper, tensors, terms or Terms(), disclose_counts, told)
        manifest = _write_manifest(folder, draft)
        (folder / SIGNATURE).write_bytes(sign_envelope(manifest, "expert", secret))
        own = {key_id(secret.public_key())}
        verify_bundle(folder, anchor=anchor, keys=own).close()
    return digest_bytes(manifest)


def _read_run(run: Path) -> RunPaper:
    for name in ("run.json", WEIGHTS):
        if not (run / name).is_file():
            raise StateError(
                f"not a finished run: {name} is missing",
                where=run,
                remedy="finish it with 'moiety train'; a stopped run resumes",
            )
    paper = parse_paper(RunPaper, read_limited(run / "run.json"), run / "run.json")
    weights = run / WEIGHTS
    if weights.stat().st_size != paper.expert.bytes or digest_file(weights) != paper.expert.sha256:
        raise StateError("the expert changed since the run ended", where=weights)
    if paper.ledger_sha256 is not None:
        # Fail closed: a promise of privacy must come with the ledger that it was counted in.
        ledger = run / LEDGER
        if not ledger.is_file() or digest_file(ledger) != paper.ledger_sha256:
            raise StateError("the ledger is missing, or changed since the run ended", where=ledger)
    return paper


def _copy_sorted(source: TensorFile, run: RunPaper, path: Path) -> dict[str, TensorFacts]:
    if {name: span.shape for name, span in source.spans.items()} != run.shapes():
        raise StateError("holds other tensors than run.json implies", where=source.path)
    spans = [source.spans[name] for name in sorted(source.spans)]
    plans = [
        TensorPlan(span.name, span.dtype, span.shape, source.blocks(span.name)) for span in spans
    ]
    digests = write_tensors(path, plans)
    return {
        span.name: TensorFacts.model_validate(
            {"dtype": span.dtype, "shape": span.shape, "sha256": digests[span.name]}
        )
        for span in spans
    }


def _draft(
    run: RunPaper,
    tensors: dict[str, TensorFacts],
    terms: Terms,
    disclose_counts: bool,
    audit: AuditSummary | None,
) -> Manifest:
    """The manifest but for the card, which is made from it."""
    public = run.result.public
    return Manifest(
        owner=run.owner,
        anchor=run.anchor,
        family=run.family,
        num_layers=run.num_layers,
        vocab=run.vocab,
        width=run.width,
        hidden=run.hidden,
        rank=run.rank,
        tensors=tensors,
        files={},
        shards={WEIGHTS: implied_shard(tensors)[1]},
        terms=terms,
        recipe=_recipe(run),
        text_size=text_size(run.text.bytes),
        text=run.text if disclose_counts else None,
        privacy=PrivacyStatement.of(run.privacy),
        probe=PublicProbe(
            public_bits_per_byte=PublicBits(
                anchor=round(public.anchor, 3), pair=round(public.pair, 3)
            )
        ),
        audit=audit,
    )


def _write_manifest(folder: Path, draft: Manifest) -> bytes:
    card = render_card(draft).encode("utf-8")
    (folder / CARD).write_bytes(card)
    card_facts = FileFacts(bytes=len(card), sha256=digest_bytes(card))
    whole = draft.model_copy(update={"files": {CARD: card_facts}})
    data = paper_bytes(whole)
    (folder / MANIFEST).write_bytes(data)
    return data


def _recipe(run: RunPaper) -> Recipe:
    named = ("moiety", "torch", "transformers")
    versions = {name: run.versions[name] for name in named if name in run.versions}
    return Recipe.model_validate({"rank": run.rank, "versions": versions})


def text_size(num_bytes: int) -> TextSize:
    """The coarse size a manifest tells: which power of ten, and no more."""
    steps: list[tuple[int, TextSize]] = [
        (10**6, "under 1 MB"),
        (10**7, "1-10 MB"),
        (10**8, "10-100 MB"),
        (10**9, "100 MB-1 GB"),
        (10**10, "1-10 GB"),
        (10**11, "10-100 GB"),
    ]
    return next((name for limit, name in steps if num_bytes < limit), "over 100 GB")

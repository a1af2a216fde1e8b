"""``moiety keys``, ``pack``, ``order`` and ``verify``: signed papers. Nothing here loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moiety.cli import screen
from moiety.cli.options import AsJson
from moiety.errors import ConfigError, FormatError, InputError

if TYPE_CHECKING:
    from moiety.bundle import audits, papers

keys = typer.Typer(no_args_is_help=True, help="Make the key an owner or a coordinator signs with.")
order = typer.Typer(no_args_is_help=True, help="Write a signed order to a coordinator.")


@keys.command("new")
def keys_new(
    out: Annotated[Path, typer.Option(help="KEY.pem; the public half goes to KEY.pub beside it.")],
    as_json: AsJson = False,
) -> None:
    """Make an Ed25519 key pair. Whoever holds KEY.pem can withdraw your expert: keep it safe.

    Example: moiety keys new --out hospital.pem
    """
    from moiety.bundle import signing

    keyid = signing.new_key(out)
    public = out.with_suffix(".pub")
    screen.say(f"private key {out} (keep it secret), public key {public} (give it away)")
    screen.say(f"  {keyid}")
    if as_json:
        screen.print_json({"key": str(out), "public": str(public), "keyid": keyid})


@order.command("withdraw")
def order_withdraw(
    bundle: Annotated[Path, typer.Argument(help="Your bundle: it names what is to leave.")],
    key: Annotated[Path, typer.Option(help="The key that signed the bundle.")],
    out: Annotated[Path, typer.Option(help="ORDER.json to write.")],
    as_json: AsJson = False,
) -> None:
    """Order the withdrawal of your expert; send the file to every coordinator who has it.

    Example: moiety order withdraw hospital.expert --key hospital.pem --out order.json
    """
    from moiety.bundle import orders

    digest = orders.write_order(bundle, key, out)
    screen.say(f"order {out}", f"  digest {digest}")
    if as_json:
        screen.print_json({"order": str(out), "digest": digest})


def pack(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    key: Annotated[Path, typer.Option(help="Your private key.")],
    out: Annotated[Path, typer.Option(help="The bundle to write, NAME.expert.")],
    terms: Annotated[
        Path | None, typer.Option(help="TOML: licence, purposes, expires, contact.")
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option(help="Also check it as a coordinator with this anchor will.")
    ] = None,
    disclose_counts: Annotated[
        bool, typer.Option("--disclose-counts", help="Tell the exact size of your text.")
    ] = False,
    require_audit: Annotated[
        Path | None, typer.Option(help="Pack only after this moiety audit: its folder.")
    ] = None,
    accept_warnings: Annotated[
        bool, typer.Option("--accept-warnings", help="Pack also when that audit warns.")
    ] = False,
    show_audit: Annotated[
        bool, typer.Option("--show-audit", help="Tell verdict and a few figures of that audit.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack and sign an expert: the only thing that leaves your house.

    The bundle holds the weights, the manifest, the signature and a card; no text, no samples, no
    loss curves, and the size of your text only as a range.

    With --require-audit nothing is packed unless the report is a fresh and passing one of exactly
    these tensors. Figures that --show-audit tells are outside a promise of privacy.

    Example: moiety pack run/ --key hospital.pem --terms terms.toml --out hospital.expert
    """
    from moiety.bundle import anchors, papers
    from moiety.bundle import pack as pack_run

    demand = _demand(require_audit, accept_warnings, show_audit)
    allowed = papers.Terms() if terms is None else papers.read_terms(terms)
    facts = None if anchor is None else anchors.open_facts(anchor)
    digest = pack_run(
        run, key, out, terms=allowed, disclose_counts=disclose_counts, anchor=facts, audit=demand
    )
    screen.say(f"bundle {out}")
    screen.figures([("digest", digest), ("terms", allowed.summary())])
    if terms is None:
        screen.note("no --terms given: the default terms above are in the bundle")
    screen.note(f"next: send {out} and your public key to the coordinator")
    if as_json:
        screen.print_json({"bundle": str(out), "digest": digest})


def _demand(report: Path | None, accept_warnings: bool, show: bool) -> audits.AuditDemand | None:
    from moiety.bundle import audits

    if report is not None:
        return audits.AuditDemand(report, accept_warnings, show)
    if accept_warnings or show:
        option = "--show-audit" if show else "--accept-warnings"
        raise ConfigError(f"{option} is about an audit", remedy="name one: --require-audit REPORT")
    return None


def verify(
    path: Annotated[
        Path, typer.Argument(help="Anchor, bundle, release, order, receipt or proxies.")
    ],
    key: Annotated[
        list[Path] | None, typer.Option(help="KEY.pub that must have signed it; repeatable.")
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option(help="Check a bundle against this anchor or release too.")
    ] = None,
    release: Annotated[Path | None, typer.Option(help="The release a receipt is about.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a paper, every byte of it. Exit 0: it holds. Exit 2: it does not, and why.

    Example: moiety verify hospital.expert --key hospital.pub --anchor anchor/
    """
    from moiety.bundle import signing

    allowed = {signing.load_public(k) for k in key} if key else None
    if release is not None and path.is_dir():
        raise ConfigError("only a receipt is about a release", where=path)
    if path.is_dir():
        facts = _verify_folder(path, allowed, anchor)
    elif path.is_file():
        facts = _verify_file(path, allowed, release)
    else:
        raise InputError("no such file or folder", where=path)
    screen.say(f"{path}: holds")
    screen.figures([(k, str(v)) for k, v in facts.items() if k != "flags"])
    for flag in facts.get("flags", []):
        screen.say(f"  note: {flag}")
    if as_json:
        screen.print_json({"path": str(path), "holds": True, **facts})


def _verify_folder(path: Path, allowed: set[str] | None, anchor: Path | None) -> dict[str, Any]:
    from moiety.bundle import anchors, verify_bundle

    if (path / "roster.json").exists():
        from moiety.merge import verify_release

        found = verify_release(path)
        tuning = found.roster.tuning
        return {
            "kind": "release",
            "digest": found.digest,
            "experts": ", ".join(found.names),
            "strict": found.roster.strict,
            "flags": [] if tuning is None else [f"not strict: {tuning.reason}"],
        }
    if (path / "manifest.json").exists() or (path / "signature.json").exists():
        facts = None
        if anchor is not None:
            inside = anchor / "anchor"
            facts = anchors.open_facts(inside if (anchor / "roster.json").exists() else anchor)
        with verify_bundle(path, anchor=facts, keys=allowed) as bundle:
            return {
                "kind": "bundle",
                "owner": bundle.manifest.owner,
                "digest": bundle.digest,
                "key": bundle.key,
                "terms": bundle.manifest.terms.summary(),
                "privacy": bundle.manifest.privacy.statement,
                **_promise(bundle.manifest.privacy.guarantee),
                **_audit(bundle.manifest.audit),
                "flags": bundle.flags,
            }
    if (path / "anchor.json").exists():
        made = anchors.verify_anchor(path)
        return {"kind": "anchor", "digest": made.digest, "tensors": len(made.paper.tensors)}
    raise FormatError(
        "not an anchor, a bundle or a release", where=path, remedy="name one of their folders"
    )


def _promise(guarantee: papers.Guarantee | None) -> dict[str, Any]:
    """An owner's promise in numbers; it is the owner's word, and no check."""
    if guarantee is None:
        return {}
    facts = guarantee.model_dump(mode="json", exclude={"outside"})
    return {"promised": ", ".join(f"{name} {value}" for name, value in facts.items())}


def _audit(summary: papers.AuditSummary | None) -> dict[str, Any]:
    """What an owner tells of an audit; it is the owner's word, and no check."""
    if summary is None:
        return {}
    return {"audit": summary.words(), "audit_report": summary.report}


def _verify_file(path: Path, allowed: set[str] | None, release: Path | None) -> dict[str, Any]:
    from moiety.bundle import orders, signing

    if _kind(path) == "order":
        order_ = orders.verify_order(path)
        signing.check_allowed(order_.key, allowed, path)
        return {"kind": "order", "key": order_.key} | order_.order.model_dump()
    if _kind(path) == "proxies":
        return _proxies(path, allowed)
    if release is None:
        receipt = orders.verify_receipt(path)
        flags = ["signature and form only: name --release to check it against one"]
    else:
        from moiety.merge import withdrawal

        receipt, flags = withdrawal.verify_receipt_against(path, release), []
    signing.check_allowed(receipt.key, allowed, path)
    facts = receipt.receipt.model_dump()
    facts["removed"] = f"{len(facts['removed'])} tensors"
    return {"kind": "receipt", "key": receipt.key, "flags": flags} | facts


def _proxies(path: Path, allowed: set[str] | None) -> dict[str, Any]:
    from moiety.bundle import orders, signing

    found = orders.verify_proxies(path)
    signing.check_allowed(found.key or "nobody", allowed, path)
    facts = found.proxies.model_dump()
    facts["documents"] = f"{len(found.proxies.documents)} documents"
    flags = ["form only: whether the documents exist shows when a release is tuned"]
    flags += [] if found.key else ["not signed: anybody may have written it"]
    return {"kind": "proxies", "key": found.key, "flags": flags} | facts


def _kind(path: Path) -> str:
    """Which paper a file claims to be; the reader for it then decides."""
    from moiety.files import parse_json, read_limited

    envelope = parse_json(read_limited(path, 2**24), path)
    if isinstance(envelope, dict):
        claimed = str(envelope.get("payloadType"))
        if claimed.endswith(".order+json"):
            return "order"
        if claimed.endswith(".receipt+json"):
            return "receipt"
        if claimed.endswith(".proxies+json") or str(envelope.get("format")).startswith(
            "moiety.proxies/"
        ):
            return "proxies"
    raise FormatError("not an order, a receipt or proxies", where=path)

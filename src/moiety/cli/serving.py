"""``moiety serve``, ``serve-key``, ``usage``: a release for others, who may ask, who was used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moiety.cli import screen
from moiety.cli.options import AsJson, Device, ReleaseFolder
from moiety.errors import ConfigError

if TYPE_CHECKING:
    from moiety.serve import jobs

PORT_MAX = 65_535

usage = typer.Typer(no_args_is_help=True, help="Who was used, by whom and when.")

Engine = Annotated[
    Literal["local", "vllm"], typer.Option(help="What computes: this process, or vLLM in its own.")
]
VLLM_PYTHON = Path(".venv-vllm/bin/python")
VllmPython = Annotated[
    Path, typer.Option(help="With --engine vllm: Python of its environment (make vllm).")
]
VllmArgs = Annotated[
    Path | None, typer.Option(help="With --engine vllm: TOML file of devices, dtype and memory.")
]
PolicyFile = Annotated[
    Path | None, typer.Option(help="TOML file of keys; without it: this machine only.")
]
Purpose = Annotated[
    str | None,
    typer.Option(help="What requests are for; without a policy. Owners' terms ask for it."),
]
UsageUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Database of usage; default: SQLite beside the release."),
]
ReceiptKey = Annotated[
    Path | None,
    typer.Option(help="Coordinator's key: withdrawals change the folder, with a receipt."),
]


def serve(
    release: ReleaseFolder,
    policy: PolicyFile = None,
    purpose: Purpose = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=PORT_MAX, help="Public port; 0: any free one.")
    ] = 8000,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=PORT_MAX, help="Port for withdrawals, on 127.0.0.1 always."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the model is called; default: as the folder.")
    ] = None,
    usage: UsageUrl = None,
    receipt_key: ReceiptKey = None,
    engine: Engine = "local",
    device: Device = "cpu",
    vllm_python: VllmPython = VLLM_PYTHON,
    vllm_args: VllmArgs = None,
) -> None:
    """Answer OpenAI's completions and chats, each request with the experts it may use.

    App developers change nothing but the base URL: http://HOST:PORT/v1. A request names experts by
    its model (NAME+hospital, NAME-court) or in an object moiety; one that names none uses all that
    its key, its purpose and the owners' terms allow, and the answer says which.

    Without --policy it listens on this machine alone and needs no key; --purpose says what its
    requests are for, where owners allow only some. Make keys with serve-key.
    With --admin-port, POST an owner's order to /admin/withdraw: requests that use the expert end
    within a second. Ctrl-C lets running requests end first; again: at once.

    --engine vllm puts vLLM behind the same API, for more than one device; docs/guides/vllm.md says
    how to install and size it.

    Example: moiety serve release/

    Example: moiety serve release/ --engine vllm --vllm-args engine.toml

    Example: moiety serve release/ --policy policy.toml --host 0.0.0.0 --admin-port 8001
    """
    with _extra():
        from moiety.serve import ServePlan, Server

    screen.show_log("moiety.serve")
    load = _loader(engine, release, device, vllm_python, vllm_args)
    plan = ServePlan(
        release=release,
        policy=policy,
        purpose=purpose,
        host=host,
        port=port,
        admin_port=admin_port,
        name=name,
        usage=usage,
        receipt_key=receipt_key,
    )
    Server(plan, load, screen.note).run()
    screen.note("stopped; usage is written")


def _loader(
    engine: str, release: Path, device: str, python: Path, sizes: Path | None
) -> Callable[[], jobs.Engine]:
    from moiety.serve import load_engine, load_vllm

    if engine != "vllm" and sizes is not None:
        raise ConfigError("it is for --engine vllm", where="--vllm-args", remedy="leave it out")
    if engine == "vllm" and device != "cpu":
        raise ConfigError("vLLM takes the device it was built for", where="--device")

    def load() -> jobs.Engine:
        screen.quiet_libraries()  # in here: health answers while libraries are loaded
        if engine == "vllm":
            return load_vllm(release, python=python, sizes=sizes)
        return load_engine(release, device=device)

    return load


def serve_key(
    id_: Annotated[str, typer.Argument(metavar="ID", help="What the key is called in usage.")],
    as_json: AsJson = False,
) -> None:
    """Make a key for an app. It is shown once; the policy keeps its hash.

    Paste the lines into policy.toml and fill in what the key may have. ID admin is the key of the
    admin port.

    Example: moiety serve-key app

    Example: moiety serve-key admin
    """
    with _extra():
        from moiety.serve import policy

    secret, kept = policy.new_key()
    if id_ == policy.ADMIN.id:
        lines = ["[admin]", f'hash = "{kept}"']
    else:
        policy.check_id(id_)
        lines = ["[[keys]]", f'id = "{id_}"', f'hash = "{kept}"', "experts = []", "purposes = []"]
    screen.note(f"the key, shown this once: {secret}")
    screen.say(*lines)
    if as_json:
        screen.print_json({"id": id_, "key": secret, "hash": kept})


@usage.command("export")
def export_usage(
    release: ReleaseFolder,
    out: Annotated[Path, typer.Option(help="File to write: .csv or .parquet.")],
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where it was written, if not the default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write who used whom: requests, tokens and routing share by hour, key and expert.

    The server may be running. An expert's share of an hour is share_sum / completion_tokens.

    Example: moiety usage export release/ --out usage.csv
    """
    with _extra():
        from moiety.serve import usage as books

    count = books.export_usage(url or books.default_url(release), out)
    screen.say(f"{count:,} rows at {out}")
    if as_json:
        screen.print_json({"usage": str(out), "rows": count})


@contextmanager
def _extra() -> Iterator[None]:
    """What an installation without the extra is told."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"serving needs {error.name}, which is not installed",
            remedy="pip install 'moiety[serve]'",
        ) from None

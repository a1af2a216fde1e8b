"""``moiety doctor``: what is installed, on what device, what is missing, and what to do."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from moiety.cli import screen
from moiety.cli.options import AsJson

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "numpy", "pydantic")
ALSO_NEEDED = (
    "cryptography",
    "dp-accounting",
    "typer",
    "rich",
    "jinja2",
    "matplotlib",
    "tensorboard",
    "zstandard",
)
EXTRAS = {"fastapi": "serve", "lm_eval": "eval", "pytest": "dev"}


@dataclass(frozen=True)
class Finding:
    """One line of the examination: ``remedy`` is empty where nothing is to be done."""

    what: str
    state: str
    ok: bool = True
    remedy: str = ""


def doctor(
    as_json: AsJson = False,
) -> None:
    """Examine this machine: versions, device, compiler, disk, keys; say what to do.

    Example: moiety doctor
    """
    findings = [*_packages(), *_machine(), *_torch(), *_extras()]
    for finding in findings:
        sign = "ok " if finding.ok else "!! "
        screen.say(f"{sign} {finding.what.ljust(16)} {finding.state}")
        if finding.remedy:
            screen.say(f"    {'':16} {finding.remedy}")
    healthy = all(finding.ok for finding in findings)
    screen.say("everything that is needed is here" if healthy else "something needed is missing")
    if as_json:
        screen.print_json({"healthy": healthy, "findings": [vars(f) for f in findings]})
    if not healthy:
        raise typer.Exit(2)


def _packages() -> list[Finding]:
    found = []
    for name in ("moiety", *NEEDED, *ALSO_NEEDED):
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            found.append(
                Finding(name, "missing", False, f"pip install {name}, or run 'make setup'")
            )
    return found


def _machine() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    compiler = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    return [
        Finding("python", platform.python_version()),
        Finding("machine", f"{platform.system()} {platform.machine()}"),
        Finding(
            "disk here", f"{free / 1e9:,.1f} GB free", free > 2e9, "" if free > 2e9 else "free some"
        ),
        Finding(
            "C++ compiler",
            compiler or "none",
            True,
            "" if compiler else "training is slower without: install g++ for torch.compile",
        ),
    ]


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from moiety.train import jobs

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bf16 over float32" if jobs.has_fast_bf16(kind) else "float32 (no bf16 in hardware)"
    return [
        Finding("device", device),
        Finding("threads", str(torch.get_num_threads())),
        Finding("training in", precision),
    ]


def _extras() -> list[Finding]:
    return [
        Finding(
            f"extra {extra}",
            "installed" if importlib.util.find_spec(module) else "not installed (optional)",
            True,
            "" if importlib.util.find_spec(module) else f"pip install 'moiety[{extra}]'",
        )
        for module, extra in EXTRAS.items()
    ]

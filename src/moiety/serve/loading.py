"""The one way from a release's folder to an engine; torch is loaded here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from moiety.merge import load_release, verify_release
from moiety.serve.jobs import Engine
from moiety.serve.sizes import read_sizes


def load_engine(release: Path, *, device: str = "cpu") -> Engine:
    """The engine of this package, ready for jobs. Every byte is compared with the roster first.

    Raises:
        TrustError: the release does not hold together.
        ConfigError: a device that is not there.
    """
    from moiety.serve.engine import LocalEngine

    # Answers bear the roster's digest, which would be a lie about other weights.
    verify_release(release)
    return LocalEngine(load_release(release, device=device))


def load_vllm(release: Path, *, python: Path, sizes: Path | None = None) -> Engine:
    """vLLM behind the same contract, in a process of its own; ``sizes`` is ``engine.toml``.

    Raises:
        TrustError: the release does not hold together.
        ConfigError: no vLLM at ``python``, or not the one that was tested; sizes that do not hold.
        StateError: it did not come up.
    """
    from moiety.serve.vllm import VllmEngine

    return VllmEngine(release, python, read_sizes(sizes))

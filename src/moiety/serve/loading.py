"""The one way from a release's folder to an engine; torch is loaded here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from moiety.merge import load_release
from moiety.serve.jobs import Engine


def load_engine(release: Path, *, device: str = "cpu") -> Engine:
    """The engine of this package, ready for jobs.

    Raises:
        TrustError: the release does not hold together.
        ConfigError: a device that is not there.
    """
    from moiety.serve.engine import LocalEngine

    return LocalEngine(load_release(release, device=device))

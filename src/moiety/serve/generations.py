"""Generations of a release in vLLM: plain checkpoints of its experts, and the processes on them.

They lie in a folder that is private to this user; what a crash leaves there is for the system's
cleaning of its temporary folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moiety.bundle import papers
from moiety.errors import ConfigError, IntegrityError
from moiety.files import parse_json, read_limited
from moiety.merge import exporting, open_release
from moiety.serve.process import Message, Process, Start
from moiety.serve.sizes import Sizes


@dataclass(eq=False)
class Generation:
    """A checkpoint of the experts in ``slots`` and who runs it; ``over``: that has ended."""

    slots: tuple[int, ...]
    folder: Path
    process: Process | None = None
    over: bool = False
    jobs: int = 0

    def send(self, message: Message) -> None:
        """Tells its process something."""
        if self.process is not None:
            self.process.send(message)


Hear = Callable[[Generation, Message | None], None]


class Maker:
    """Makes generations of a release, and takes them away.

    Raises:
        TrustError: the release does not hold together.
        ConfigError: sizes that do not fit.
    """

    def __init__(self, release: Path, python: Path, sizes: Sizes) -> None:
        self._release = open_release(Path(release))
        self._python, self._sizes = Path(python).absolute(), sizes
        self.names = tuple(self._release.names)
        self.vocabulary = self._release.roster.vocab
        self.max_context = _context(self._release.folder, sizes)
        self._folder = Path(tempfile.mkdtemp(prefix="moiety-vllm-"))

    def make(self, slots: tuple[int, ...], hear: Hear) -> Generation:
        """Exports the experts in ``slots`` and begins a process on them, which is to be opened.

        Raises:
            TrustError: the release does not hold, or is no longer the one that is served.
            ConfigError: no Python there.
        """
        generation = Generation(slots, Path(tempfile.mkdtemp(dir=self._folder)))
        model = generation.folder / "model"
        try:
            exporting.export_plain(
                self._release.folder,
                model,
                experts=[self.names[slot] for slot in slots],
                devices=self._sizes.tensor_parallel_size,
            )
            self._check(model, slots)
            args = self._sizes.args(self.max_context)
            start = Start(self._python, model, len(slots), args, self._folder)
            generation.process = Process(start, partial(hear, generation))
        except BaseException:
            self.end(generation)
            raise
        return generation

    def end(self, generation: Generation) -> None:
        """Ends its process, and deletes its checkpoint."""
        if generation.process is not None:
            generation.process.end()
        shutil.rmtree(generation.folder, ignore_errors=True)

    def close(self) -> None:
        """Removes the folder and whatever is in it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, model: Path, slots: tuple[int, ...]) -> None:
        """The folder may have changed since it was opened: what was exported must be the same."""
        paper = papers.read_paper(exporting.ExportPaper, model / exporting.PAPER)
        experts = self._release.roster.experts
        wanted = [(experts[slot].name, experts[slot].bundle) for slot in slots]
        same = self._release.roster.strict and paper.strict
        if [(one.name, one.bundle) for one in paper.experts] != wanted or not (
            same or paper.release == self._release.digest
        ):
            raise IntegrityError("not the experts that are served", where=self._release.folder)


def _context(folder: Path, sizes: Sizes) -> int:
    """Tokens of prompt and answer together. Raises ``ConfigError`` for more than the model has."""
    path = folder / "config.json"
    most = int(parse_json(read_limited(path), path)["max_position_embeddings"])
    if (sizes.max_model_len or 0) > most:
        raise ConfigError(f"max_model_len: the model has {most:,} positions")
    return sizes.max_model_len or most

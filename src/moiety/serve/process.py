"""vLLM's process, and the lines between it and us: ``src/moiety_vllm`` is its other end.

What comes from it is checked like anything that comes from outside: a line that is none ends it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from moiety.errors import ConfigError, StateError

LOG = logging.getLogger(__name__)

TESTED = "0.32.0"
"""The version of vLLM whose inside the plugin fits; ``constraints-vllm.txt`` pins it too."""

PROTOCOL = 1
LINE_MAX_CHARS = 2**26
TOLD_LINES = 300
_CAUSE = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .+")
_NO_CAUSE = "See root cause"
START_SECONDS = 1800.0
END_SECONDS = 10.0

Message = dict[str, Any]
MAKE = "make vllm makes an environment for it; see docs/guides/vllm.md"
COMES_UP = "see 'When something breaks' in docs/guides/vllm.md, or serve it with --engine local"


@dataclass(frozen=True)
class Start:
    """What a worker process is started with.

    ``python`` is the interpreter of vLLM's environment, ``model`` a plain checkpoint of so many
    ``experts``, ``args`` are the engine's, ``folder`` is where it may write.
    """

    python: Path
    model: Path
    experts: int
    args: Mapping[str, Any]
    folder: Path


@dataclass
class _Opening:
    """How far a start has come. ``told`` are answers that the engine never sees."""

    told: queue.SimpleQueue[Message | None] = field(default_factory=queue.SimpleQueue)
    over: bool = False


class Process:
    """A worker's process, and whoever reads it. After ``open`` it is ready for jobs.

    From then on ``hear`` is told its lines, and None as the last.

    Raises:
        ConfigError: no Python there.
    """

    def __init__(self, start: Start, hear: Callable[[Message | None], None]) -> None:
        self._hear = hear
        self._last: deque[str] = deque(maxlen=TOLD_LINES)
        self._opening = _Opening()
        self._lines: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.why_ended = ""
        self._ended_by_us = False
        self._start = start
        self._popen = _spawn(start)
        threads = (self._read, self._write, self._listen)
        self._threads = [threading.Thread(target=work, daemon=True) for work in threads]
        for thread in self._threads:
            thread.start()

    def open(self) -> None:
        """Waits until it is ready; where it fails, it is ended.

        Raises:
            ConfigError: no vLLM there, or another version than the one that was tested.
            StateError: it did not come up; with its last words.
        """
        try:
            self._open(self._start)
        except BaseException:
            self.end()
            raise

    def send(self, message: Message) -> None:
        """Tells it something; never waits. Lost where it has ended."""
        self._lines.put(message)

    def end(self) -> None:
        """Ends it and every process it started, at once."""
        self._ended_by_us = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._lines.put(None)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_SECONDS)

    def _open(self, start: Start) -> None:
        hello = self._expect("hello")
        version = str(hello.get("vllm")).partition("+")[0]
        if version != TESTED:
            raise ConfigError(
                f"vLLM {version!a} is not the one that was tested, {TESTED}",
                where=start.python,
                remedy=MAKE,
            )
        if hello.get("protocol") != PROTOCOL:
            raise ConfigError(
                "another version of moiety is installed beside vLLM",
                where=start.python,
                remedy=MAKE,
            )
        model = {"model": str(start.model), "experts": start.experts, "args": dict(start.args)}
        self.send(model)
        self._expect("ready")

    def _expect(self, kind: str) -> Message:
        try:
            message = self._opening.told.get(timeout=START_SECONDS)
        except queue.Empty:
            raise StateError(f"vLLM did not come up within {START_SECONDS:.0f} s") from None
        if message is not None and message.get("is") == kind:
            return message
        self.end()
        self._threads[2].join(END_SECONDS)
        words = self.why_ended if message is None else str(message.get("words"))[:300]
        told = f"vLLM did not come up: {self._cause() or words}"
        LOG.error("%s\n%s", told, "\n".join(self._last))
        if "No module named" in told:
            raise ConfigError(told, remedy=MAKE)
        raise StateError(told, remedy=COMES_UP)

    def _read(self) -> None:
        """Hands lines over until there are none, or one that is none."""
        why = ""
        try:
            with self._pipe("stdout") as out:
                while line := out.readline(LINE_MAX_CHARS):
                    why = self._heard(json.loads(line)) or why
        except Exception as error:
            LOG.exception("a line of vLLM's process is not understood")
            why = f"it said what is not understood ({type(error).__name__})"
        by_itself = not self._ended_by_us
        self.end()
        self._threads[2].join(END_SECONDS)
        self.why_ended = why or self._last_words()
        if by_itself:
            LOG.error("vLLM's process has ended: %s\n%s", self.why_ended, "\n".join(self._last))
        if self._opening.over:
            self._hear(None)
        else:
            self._opening.told.put(None)

    def _heard(self, message: Message) -> str:
        """Hands one line over; the words of one that says why it ends."""
        if not self._opening.over:
            # What follows on "ready" is for the engine: nobody else reads these any more.
            self._opening.over = message["is"] == "ready"
            self._opening.told.put(message)
        elif message["is"] == "failed":
            return str(message.get("words"))[:300]
        else:
            self._hear(message)
        return ""

    def _cause(self) -> str:
        """The last error that its log names; its first process hears only that there was one."""
        found = (_CAUSE.search(line) for line in reversed(self._last) if _NO_CAUSE not in line)
        return next((match.group()[:300] for match in found if match), "")

    def _last_words(self) -> str:
        code = self._popen.returncode
        if code is not None and code < 0:
            return f"it was ended by signal {-code}"
        last = next((line for line in reversed(self._last) if line.strip()), "")
        return last.strip()[:300] or f"it ended with {code}"

    def _write(self) -> None:
        with suppress(OSError, ValueError), self._pipe("stdin") as pipe:
            while (message := self._lines.get()) is not None:
                pipe.write(json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")
                pipe.flush()

    def _listen(self) -> None:
        """Keeps the last of what it says beside the protocol: its log."""
        with self._pipe("stderr") as pipe:
            for line in pipe:
                text = line.decode("utf-8", "replace").rstrip()
                self._last.append(text)
                LOG.debug("vLLM: %s", text)

    def _pipe(self, name: str) -> IO[bytes]:
        pipe = getattr(self._popen, name)
        assert pipe is not None
        return pipe  # type: ignore[no-any-return]


def _spawn(start: Start) -> subprocess.Popen[bytes]:
    # A group of its own: ended as a whole, and Ctrl-C at a terminal is the server's to hear.
    # Not from the working directory (-P): what lies there is not what was installed.
    command = [str(start.python), "-P", "-m", "moiety_vllm"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    try:
        return subprocess.Popen(
            command, cwd=start.folder, env=_environment(start), start_new_session=True, **pipes
        )
    except OSError as error:
        raise ConfigError(
            f"no Python of vLLM's to run: {error.strerror}", where=start.python, remedy=MAKE
        ) from None


def _environment(start: Start) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ours = {
        "MOIETY_VLLM_EXPERTS": str(start.experts),
        # Nobody else's plugins, and the runner that ours fits.
        "VLLM_PLUGINS": "moiety",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        # A graph compiled without the masks must never be found again, nor ours by others.
        "VLLM_CACHE_ROOT": str(start.folder / "cache"),
        "VLLM_DISABLE_COMPILE_CACHE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | ours

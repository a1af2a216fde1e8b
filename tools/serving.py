"""What measuring a server needs: a release, the server as a process, a client that is cheap.

The client is a few lines over sockets: two hundred of a real one would need the processor more than
the server that is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import tiny
from tests.serve.conftest import policy_of

OWNERS = ("ann", "ben", "cleo", "dan")
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
"""The preset ``small`` but for its vocabulary: 19 million parameters with four owners."""

NO_LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrent": 10**6}
START_SECONDS = 120


def make_release(folder: Path, shape: Mapping[str, int] = SHAPE) -> Path:
    """A release of four owners with random experts; made once."""
    if not (folder / "release-0" / "roster.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        world = tiny.make_world(folder, dict.fromkeys(OWNERS), **shape)
        assert world.release(*OWNERS) == folder / "release-0"
    return folder / "release-0"


def write_policy(folder: Path, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """``folder/policy.toml`` of keys without limits; returns their secrets."""
    text, secrets = policy_of(**{name: {**NO_LIMITS, **told} for name, told in keys.items()})
    (folder / "policy.toml").write_text(text, "utf-8")
    return secrets


@dataclass(frozen=True)
class Running:
    """A server's process, and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    def facts(self) -> dict[str, int]:
        """Resident memory in KiB, threads and open files of it now."""
        place = Path("/proc") / str(self.process.pid)
        lines = (place / "status").read_text("ascii").splitlines()
        told = dict(line.split(":", 1) for line in lines)
        return {
            "rss_kib": int(told["VmRSS"].split()[0]),
            "threads": int(told["Threads"]),
            "files": len(list((place / "fd").iterdir())),
        }


@contextmanager
def running(
    command: Sequence[str], port: int, path: str, log: Path, **env: str
) -> Iterator[Running]:
    """A server as a process of its own, from when ``path`` is answered until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=out, stderr=out, env={**os.environ, **env}
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}{path}", log)
            yield Running(process, port)
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"the server did not start: {log.read_text('utf-8', 'replace')[-2000:]}")


def free_port() -> int:
    """A port that is free now."""
    import socket

    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def request_bytes(body: Any, key: str | None = None, path: str = "/v1/completions") -> bytes:
    """A whole POST, after which the server hangs up."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass(frozen=True)
class Reply:
    """What came back. Status 0: the server hung up without one."""

    status: int
    head: str
    body: bytes

    @property
    def text(self) -> str:
        """The completion's text, of a whole answer or of a stream."""
        if "text/event-stream" not in self.head:
            return str(json.loads(self.body)["choices"][0]["text"])
        events = [one[6:] for one in self.body.decode().split("\n\n") if one.startswith("data: ")]
        assert events[-1] == "[DONE]", events[-1:]
        told = [json.loads(one) for one in events[:-1]]
        assert not any("error" in one for one in told), told[-1]
        return "".join(choice["text"] for one in told for choice in one["choices"])

    @property
    def retry_seconds(self) -> float:
        """What a 429 says."""
        found = [line for line in self.head.split("\r\n") if line.startswith("retry-after:")]
        return float(found[0].partition(":")[2]) if found else 1.0


async def send(port: int, data: bytes, *, pause: float = 0.0, most: int | None = None) -> Reply:
    """Sends bytes and reads the answer: slowly with a ``pause``, or only ``most`` bytes of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    parts: list[bytes] = []
    try:
        writer.write(data)
        await writer.drain()
        while part := await reader.read(256 if pause else 65536):
            parts.append(part)
            await asyncio.sleep(pause)
            if most is not None and sum(map(len, parts)) >= most:
                break
    except ConnectionError:
        pass
    finally:
        writer.close()
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    told = head.decode("latin-1").lower()
    return Reply(int(told.split(" ", 2)[1]) if told else 0, told, _joined(told, body))


def _joined(head: str, body: bytes) -> bytes:
    if "transfer-encoding: chunked" not in head:
        return body
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        count = int(size or b"0", 16)
        parts.append(rest[:count])
        body = rest[count + 2 :]
    return b"".join(parts)

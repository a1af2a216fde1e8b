"""Real servers on real sockets, over a real tiny release."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from tests import makers, tiny
from tests.serve.browsing import Visit, chromium
from tests.serve.engines import Script, ToldEngine, short

from moiety.bundle import papers
from moiety.merge import merge
from moiety.serve import ServePlan, Server, load_engine
from moiety.serve.policy import new_key

NAME = "mixture"
SET = ("anchor", "amy", "bob", "cat")
TERMS = {
    "amy": papers.Terms(),
    "bob": papers.Terms(purposes=("care", "research")),
    "cat": papers.Terms(purposes=("research",), expires=date(2030, 6, 1)),
    "dan-b": papers.Terms(expires=date(2030, 1, 1)),
}


@dataclass
class Live:
    """A server that runs in a thread, and what it said."""

    server: Server
    said: list[str]
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.server.admin_port}"

    @property
    def admin_key(self) -> str:
        (line,) = [one for one in self.said if one.startswith("admin key")]
        return line.rpartition(" ")[2]

    @property
    def house(self) -> Any:
        return self.server._house

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(
        self, path: str = "/v1/completions", key: str | None = None, **how: Any
    ) -> httpx.Response:
        headers = how.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        return self.http.post(self.url + path, headers=headers, **how)

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.http.get(self.url + path, headers=headers)

    def admin(self, method: str, path: str, key: str | None = None, **how: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.admin_key}"}
        return self.http.request(method, self.admin_url + path, headers=headers, **how)


@contextlib.contextmanager
def serving(plan: ServePlan, load: Callable[[], Any], *, wait: bool = True) -> Iterator[Live]:
    """Serves until the block ends; then it must have stopped."""
    said: list[str] = []
    live = Live(Server(plan, load, said.append), said)
    thread = threading.Thread(target=live.server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while wait and not any(line.startswith("ready") for line in said):
        assert thread.is_alive(), said
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
    while not live.server._listeners[0].started:
        time.sleep(0.01)
    try:
        yield live
    finally:
        live.http.close()
        live.server.stop()
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def told_server(
    release: Path,
    place: Path,
    script: Script,
    wait: float = 0.0,
    names: tuple[str, ...] = SET,
    **plan: Any,
) -> Iterator[Live]:
    """Serves with an engine that does as ``script`` tells it."""
    engine = ToldEngine(names, script, wait)
    found = ServePlan(release, port=0, admin_port=0, usage=f"sqlite:///{place}/u.sqlite", **plan)
    with serving(found, lambda: engine) as live:
        yield live


@contextlib.contextmanager
def policed(
    release: Path, place: Path, keys: dict[str, dict[str, Any]]
) -> Iterator[tuple[Live, dict[str, str], Path, str]]:
    """Serves a release with terms, with a policy of ``keys``; each answer is a few short steps.

    Yields the server, the secrets, the policy's file and its text.
    """
    text, secrets = policy_of(**keys)
    policy = place / "policy.toml"
    policy.write_text(text)
    with told_server(release, place, short, names=("anchor", *TERMS), policy=policy) as live:
        yield live, secrets, policy, text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; a module's own, because an asyncio loop runs in this thread as long as it does."""
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens tabs; nothing on them may have broken, or touched the content policy."""
    visits: list[Visit] = []

    def make(url: str, **how: Any) -> Visit:
        visits.append(Visit(browser, url, **how))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
        assert one.complaints() == []


@pytest.fixture(scope="session")
def release(tiny_world: tiny.World) -> Path:
    """Amy, bob and cat; not to be changed."""
    return tiny_world.release("amy", "bob", "cat")


@pytest.fixture(scope="session")
def release_with_terms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four owners with different terms, of a model that says nothing; not to be changed."""
    place = tmp_path_factory.mktemp("terms")
    anchor = makers.make_anchor(place / "anchor")
    bundles = [
        makers.make_bundle(place, anchor, owner, seed=seed, terms=terms)
        for seed, (owner, terms) in enumerate(TERMS.items(), start=1)
    ]
    merge(anchor, bundles, place / "release")
    return place / "release"


@pytest.fixture(scope="session")
def live(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server without a policy."""
    place = tmp_path_factory.mktemp("usage") / "usage.sqlite"
    plan = ServePlan(release, port=0, admin_port=0, name=NAME, usage=f"sqlite:///{place}")
    with serving(plan, lambda: load_engine(release)) as found:
        yield found


@pytest.fixture(scope="session")
def client(live: Live) -> OpenAI:
    return live.client()


def policy_of(**keys: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The text of a policy, and the secrets of its keys; ``admin`` is always among them."""
    secret, kept = new_key()
    lines, secrets = ["[admin]", f'hash = "{kept}"'], {"admin": secret}
    for id_, fields in keys.items():
        secrets[id_], kept = new_key()
        lines += ["[[keys]]", f'id = "{id_}"', f'hash = "{kept}"']
        lines += [f"{name} = {_toml(value)}" for name, value in fields.items()]
    return "\n".join(lines) + "\n", secrets


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (
        str(value).replace("'", '"')
        if isinstance(value, list)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )


def settled(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether something becomes true soon."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()

"""Two ports in one process: the public one, and the one for whoever administers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from moiety.bundle import signing
from moiety.errors import ConfigError, StateError
from moiety.serve.admin import admin_app
from moiety.serve.api import public_app
from moiety.serve.door import LOOPBACK
from moiety.serve.house import STOPPING, House
from moiety.serve.jobs import Engine
from moiety.serve.lines import Line, allow_files, once_a_minute
from moiety.serve.policy import new_key
from moiety.serve.refusals import RefusalError
from moiety.serve.served import Served
from moiety.serve.usage import Books, default_url
from moiety.stopping import handled

ADMIN_HOST = "127.0.0.1"
GRACE_SECONDS = 10
"""Requests that run when a server is stopped have so long to end."""

TELL_SECONDS = 2
"""Then those that are left are told why, and then cut."""

CUT_SECONDS = 1
HURRY_SECONDS = 5
"""A second signal ends the process within this, whatever it waits for: a load, a lock, a device."""

INTERRUPTED = 130
STOP_SECONDS = 0.1
KEEP_ALIVE_SECONDS = 30
HEADERS_MAX_BYTES = 32 * 2**10

Load = Callable[[], Engine]


@dataclass(frozen=True)
class ServePlan:
    """What to serve, to whom, where. ``admin_port`` of None: no admin port.

    ``name`` defaults to the folder's; ``usage`` to SQLite beside the folder. ``receipt_key`` lets
    withdrawals change the folder. ``purpose`` is what requests are for, where there is no policy.
    """

    release: Path
    policy: Path | None = None
    purpose: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    admin_port: int | None = None
    name: str | None = None
    usage: str | None = None
    receipt_key: Path | None = None


class _Listener(uvicorn.Server):
    """A server that leaves signals to whoever runs two of them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class Server:
    """A release being served. ``say`` hears one line at a time of what a person should know.

    Raises:
        ConfigError: a host that is not loopback, without a policy; a policy that does not hold; a
            key for receipts that is none, or without an admin port.
    """

    def __init__(self, plan: ServePlan, load: Load, say: Callable[[str], None]) -> None:
        if plan.policy is None and plan.host not in LOOPBACK:
            raise ConfigError(
                f"without a policy everybody who reaches {plan.host} could use everything",
                where="--host",
                remedy="give --policy policy.toml, or listen on 127.0.0.1",
            )
        if plan.policy is not None and plan.purpose is not None:
            raise ConfigError(
                "a policy says what its keys may be used for",
                where="--purpose",
                remedy="leave it out",
            )
        if plan.receipt_key is not None:
            _check_receipts(plan.receipt_key, plan.admin_port)
        self._plan, self._load, self._say = plan, load, say
        self._stopped = self._hurried = self._interrupted = False
        name = Path(plan.release).absolute().name if plan.name is None else plan.name
        served = Served(plan.release, name)
        self._books = Books(plan.usage or default_url(plan.release))
        self._house = self._make_house(served)
        self._listeners = [_listener(public_app(self._house), plan.host, plan.port)]
        if plan.admin_port is not None:
            admin = admin_app(self._house)
            self._listeners.append(_listener(admin, ADMIN_HOST, plan.admin_port))

    def _make_house(self, served: Served) -> House:
        plan, admin_hash = self._plan, None
        if plan.policy is None and plan.admin_port is not None:
            secret, admin_hash = new_key()
            self._say(f"admin key, for this run: {secret}")
        house = House(
            served,
            self._books,
            policy=plan.policy,
            purpose=plan.purpose,
            receipt_key=plan.receipt_key,
            admin_hash=admin_hash,
        )
        if plan.admin_port is not None and house.policy and house.policy.admin_hash is None:
            self._say("the policy has no [admin]: nobody can use the admin port")
        for remark in house.remarks():
            self._say(remark)
        return house

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM, or until ``stop``; running requests may end first.

        Raises:
            StateError: a port is taken.
            MoietyError: the engine cannot be loaded.
            KeyboardInterrupt: a second signal; usage is written.
        """
        allow_files()
        with self._signals():
            try:
                asyncio.run(self.serve())
            finally:
                self._books.close()
        if self._interrupted:
            raise KeyboardInterrupt("stopped at once; usage is written")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hears signals, also when the event loop does not run: while it is closed, for one."""
        with (
            handled(self._signalled, signal.SIGINT, signal.SIGTERM),
            handled(_leave, signal.SIGALRM),
        ):
            try:
                yield
            finally:
                if self._interrupted:
                    signal.alarm(0)

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        self.stop()
        if self._hurried and not self._interrupted:
            self._interrupted = True
            signal.alarm(HURRY_SECONDS)

    def stop(self) -> None:
        """Stops serving; a second time at once. From any thread."""
        self._hurried = self._stopped
        self._stopped = True
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._house.problem = STOPPING
        for listener in self._listeners:
            listener.should_exit = True

    async def _part(self) -> None:
        """Lets requests end; after a while, or when somebody hurries, tells them; then cuts."""
        await self._gone(GRACE_SECONDS, patient=True)
        for run in list(self._house.runs.now):
            run.end(RefusalError(503, STOPPING, code="stopping"))
        await self._gone(TELL_SECONDS)
        for listener in self._listeners:
            for task in listener.server_state.tasks:
                task.cancel()
        await self._gone(CUT_SECONDS)
        for listener in self._listeners:
            for line in list(listener.server_state.connections):
                line.transport.abort()
            listener.force_exit = True

    async def _gone(self, seconds: float, *, patient: bool = False) -> None:
        """Returns when no request and no connection is left, or after so long."""
        states = [listener.server_state for listener in self._listeners]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(state.connections or state.tasks for state in states):
                    if patient and self._hurried:
                        return
                    await asyncio.sleep(STOP_SECONDS)

    async def serve(self) -> None:
        """What ``run`` runs."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(once_a_minute(self._say))
        loading = asyncio.ensure_future(self._open())
        watching = asyncio.ensure_future(self._house.watch(self._say))
        listening = [asyncio.ensure_future(_listen(one)) for one in self._listeners]
        try:
            await self._until_stopped([loading, *listening])
        finally:
            self._stop_listening()
            await self._part()
            await asyncio.wait([loading, *listening])
            watching.cancel()
            await self._house.runs.drain()
            if self._house.engine is not None:
                self._house.engine.close()
        for task in (loading, *listening):
            task.result()

    async def _until_stopped(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Returns when somebody said so, or when one of the tasks has failed."""
        while self._house.problem != STOPPING:
            if any(task.done() and task.exception() for task in tasks):
                return
            await asyncio.sleep(STOP_SECONDS)

    async def _open(self) -> None:
        """Loads the engine while health already says that it is being loaded."""
        engine = await asyncio.to_thread(self._load)
        self._house.open(engine)
        while not all(listener.started for listener in self._listeners):
            if self._house.problem == STOPPING:
                break
            await asyncio.sleep(STOP_SECONDS)
        if self._house.problem == STOPPING:  # perhaps long before it was loaded
            return
        where = f"http://{self._plan.host}:{self.port}"
        self._say(f"a page to try it on: {where}/")
        self._say(f"ready: {self._house.served.name} at {where}/v1")

    @property
    def port(self) -> int:
        """The public port, also where the system chose it."""
        return _port(self._listeners[0], self._plan.port)

    @property
    def admin_port(self) -> int:
        """The admin port, also where the system chose it."""
        return _port(self._listeners[1], self._plan.admin_port or 0)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _check_receipts(key: Path, admin_port: int | None) -> None:
    """An owner's order comes long after the start: what it needs is looked at now."""
    if admin_port is None:
        raise ConfigError(
            "it signs receipts of orders, which come to the admin port, and there is none",
            where="--receipt-key",
            remedy="give --admin-port too, or leave it out",
        )
    signing.load_key(key)


def _listener(app: ASGIApp, host: str, port: int) -> _Listener:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="off",
        ws="none",
        http=Line,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_level="error",
        h11_max_incomplete_event_size=HEADERS_MAX_BYTES,
    )
    return _Listener(config)


async def _listen(listener: _Listener) -> None:
    try:
        await listener.serve()
    except SystemExit:  # uvicorn's way to say that it could not listen
        where = f"{listener.config.host}:{listener.config.port}"
        raise StateError("cannot listen", where=where, remedy="take another port") from None


def _port(listener: _Listener, asked: int) -> int:
    with suppress(AttributeError, IndexError):
        return int(listener.servers[0].sockets[0].getsockname()[1])
    return asked

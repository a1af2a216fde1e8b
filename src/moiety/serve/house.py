"""A server's state: the release, the policy, the engine, the books, and the requests under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from moiety.errors import MoietyError, StateError
from moiety.serve import journal
from moiety.serve.jobs import Engine, Load
from moiety.serve.limits import Limits
from moiety.serve.metrics import Metrics
from moiety.serve.policy import (
    ADMIN,
    Policy,
    Rights,
    is_key,
    local_rights,
    read_policy,
    unknown_experts,
)
from moiety.serve.refusals import RefusalError, no_key
from moiety.serve.running import Runs
from moiety.serve.served import Served
from moiety.serve.texts import Texts
from moiety.serve.usage import Books

_log = logging.getLogger("moiety.serve")

CHECK_SECONDS = 0.5
LOOKS = 4
"""So often in a row a folder may fail to hold: it may be copied there file by file."""

DOUBT = "the release's folder has changed, and does not hold"
LOADING = "the model is being loaded"
STOPPING = "the server is stopping"
LOAD_SECONDS = 5
WORKERS = 4
"""Threads for what requests ask for. Withdrawals have others, so they never wait for these."""

T = TypeVar("T")


class House:
    """Everything that requests share. Belongs to one event loop.

    ``engine`` is handed in when it is loaded; until then ``why_not_ready`` says so.
    """

    def __init__(
        self,
        served: Served,
        books: Books,
        *,
        policy: Path | None = None,
        purpose: str | None = None,
        receipt_key: Path | None = None,
        admin_hash: str | None = None,
    ) -> None:
        self.served = served
        self.books = books
        self.texts = Texts(served.folder)
        self.limits = Limits()
        self.metrics = Metrics(self.load)
        self.runs = Runs(books, self.metrics.used)
        self.engine: Engine | None = None
        self.receipt_key = receipt_key
        self.problem: str | None = LOADING
        self._policy_path = policy
        self.policy: Policy | None = None if policy is None else read_policy(policy)
        self._local = local_rights(purpose)
        self._admin_hash = admin_hash
        self._wrong_keys = journal.Tally("wrong keys"), journal.Tally("wrong admin keys")
        self._changing = asyncio.Lock()
        self._workers = ThreadPoolExecutor(WORKERS, "moiety-request")
        self._seen: tuple[int, ...] | None = None
        self._failed_looks = 0

    def open(self, engine: Engine) -> None:
        """From now on requests are answered.

        Raises:
            StateError: the engine has other experts than the release.
        """
        if tuple(engine.names) != self.served.names:
            raise StateError("the engine has other experts than the release")
        gone = [slot for slot, name in enumerate(self.served.names) if self.served.has_left(name)]
        if gone:
            engine.remove(gone)
        self.engine = engine
        if self.problem == LOADING:
            self.problem = None

    def load(self) -> Load | None:
        """How busy the engine is; None while there is none."""
        return None if self.engine is None or self.why_not_ready() else self.engine.load()

    def why_not_ready(self) -> str | None:
        """Why requests are refused; None when they are not."""
        if self.problem is not None:
            return self.problem
        if self.books.problem is not None:
            return f"usage cannot be written: {self.books.problem}"
        if self._failed_looks >= LOOKS:
            # Somebody may have left, and it cannot be known who.
            return DOUBT
        return LOADING if self.engine is None else self.engine.problem

    def ready_engine(self) -> Engine:
        """The engine. Raises ``RefusalError`` (503) while there is none."""
        told = self.why_not_ready()
        if told is not None:
            headers = {"Retry-After": str(LOAD_SECONDS)}
            raise RefusalError(503, told, code="not_ready", headers=headers)
        assert self.engine is not None, "where there is none, that is told"
        return self.engine

    async def work(self, what: Callable[[], T]) -> T:
        """What a call returns, made in a thread: for what would keep the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, what)

    def find(self, path: str, key: str | None) -> Rights | None:
        """Who asks. What is counted is about everybody, so it is for whoever administers.

        Raises:
            RefusalError: 401 for the admin's key where an app's is needed, and the other way.
        """
        if self.policy is None:
            return self._local
        return self._who(key, admin=path == "/metrics")

    def rights(self, key_hash: str | None) -> Rights:
        """What a key that was let in may have at this moment, by its hash.

        Raises:
            RefusalError: 401 where the policy in force no longer has it.
        """
        rights = self._local if self.policy is None else self.policy.by_hash.get(key_hash)
        if rights is None:
            raise _no_longer_valid()
        return rights

    def find_admin(self, _path: str, key: str | None) -> Rights | None:
        """Who administers. Raises ``RefusalError`` (401) for an app's key."""
        return self._who(key, admin=True)

    def _who(self, key: str | None, *, admin: bool) -> Rights | None:
        if key is None:
            return None
        kept = self._admin_hash if self.policy is None else self.policy.admin_hash
        app = None if self.policy is None else self.policy.find(key)
        found = ADMIN if is_key(key, kept) else app
        if found is not None and (found is ADMIN) == admin:
            return found
        self._wrong_keys[admin].add()
        if found is not None:
            raise _other_key(admin=admin)
        return None

    def reload(self) -> list[str]:
        """Reads the policy anew; ends what it no longer allows. Returns what deserves a look.

        Raises:
            ConfigError: the file does not hold; the old policy stays in force.
        """
        if self._policy_path is not None:
            self.policy = read_policy(self._policy_path)
        self.enforce()
        return self.remarks()

    def remarks(self) -> list[str]:
        """What a person should know of the policy, or of having none."""
        if self.policy is None:
            told = self.served.unused(self._local)
            more = "requests can name a purpose, or start with --purpose"
            return [f"not used: {'; '.join(told)}; {more}"] if told else []
        if not self.policy.keys:
            return ["the policy has no [[keys]]: nobody can ask; moiety serve-key makes a key"]
        lost = unknown_experts(self.policy, self.served.names)
        remarks = [f"key {key} names {name}, which is not in this release" for key, name in lost]
        for key in self.policy.keys.values():
            told, say = self.served.never_used(key), ", ".join(key.purposes) or "nothing"
            if told:
                remarks.append(
                    f"key {key.id}, which may ask for {say}, can never use {'; '.join(told)}"
                )
        return remarks

    def enforce(self) -> None:
        """Ends requests that may no longer go on: expert gone, terms over, key changed."""
        for run in list(self.runs.now):
            try:
                rights = self.rights(run.rights.hash)
                if rights.id != run.rights.id:
                    raise _no_longer_valid()
                self.served.check_still_allowed(rights, run.chosen)
            except RefusalError as refusal:
                run.end(refusal)

    async def withdraw(self, order: Path) -> dict[str, Any]:
        """Obeys an owner's order: at once in this server, then in the release's folder.

        Raises:
            TrustError: the order is not the owner's, or for another bundle.
            RefusalError: the folder could not follow; the expert is out of this server even so.
        """
        async with self._changing:
            before, ordered = self.served.digest, self.served.accept(order)
            name = ordered.order.owner
            told: dict[str, Any] = {"withdrawn": name, "on_disk": False}
            try:
                await self._take_out([name])
                told |= await self._in_folder(name, order)
            finally:
                journal.withdrawn(ordered, before, self.served.digest, told)
            return {**told, "roster": self.served.digest}

    async def _in_folder(self, name: str, order: Path) -> dict[str, Any]:
        if not self.served.in_folder(name):
            return {"on_disk": True, "note": f"{name} had left the folder already"}
        if self.receipt_key is not None:
            return await self._follow_on_disk(name, order, self.receipt_key)
        note = (
            f"only in this server: {self.served.folder} still holds {name}, and a restart "
            "would serve it again. Withdraw it there too, or start with --receipt-key"
        )
        return {"note": note}

    async def _follow_on_disk(self, name: str, order: Path, key: Path) -> dict[str, Any]:
        place = self._receipt_place(name)
        work = partial(self.served.withdraw_on_disk, name, order, key, place)
        try:
            done = await asyncio.to_thread(work)
        except (MoietyError, OSError) as error:
            raise RefusalError(
                500,
                f"{name} is out of this server, and the release's folder is as it was: {error}",
                code="folder_not_written",
            ) from None
        with suppress(MoietyError, OSError):  # whoever watches the folder looks again
            await self._adopt()
        return {"on_disk": True, "receipt": done["receipt"], "flags": done["flags"]}

    def _receipt_place(self, name: str) -> Path:
        folder = self.served.folder.absolute()
        return folder.with_name(f"{folder.name}.{name}.receipt.json")

    async def _take_out(self, names: list[str]) -> None:
        self.served.leave(names)
        self.enforce()
        if self.engine is not None:
            slots = [self.served.names.index(name) for name in names]
            await asyncio.to_thread(self.engine.remove, slots)

    async def _adopt(self) -> None:
        """Takes out whoever has left the release's folder since it was last taken over.

        Raises:
            MoietyError: it does not hold.
        """
        state = self._roster_state()
        if state is not None and state == self._seen:
            return
        await self._take_out(await asyncio.to_thread(self.served.read_again))
        # Not before: a look that came to nothing is no look.
        self._seen = state

    def _roster_state(self) -> tuple[int, ...] | None:
        try:
            state = (self.served.folder / "roster.json").stat()
        except OSError:
            return None
        # Whoever copies may set the time of the last change, but not that of the last touch.
        return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    async def watch(self, say: Callable[[str], None]) -> None:
        """Runs as long as the server: ends what terms, a policy or a new roster end.

        While it cannot be known who has left the folder, requests are refused.
        """
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                self.runs.bill_running()
                self.enforce()
                if self._changing.locked():
                    continue
                async with self._changing:
                    await self._adopt()
            except Exception as error:
                self._failed(error, say)
            else:
                if self._failed_looks >= LOOKS:
                    say("the release's folder holds again")
                self._failed_looks = 0

    def _failed(self, error: Exception, say: Callable[[str], None]) -> None:
        self._failed_looks += 1
        if self._failed_looks == 1 and not isinstance(error, MoietyError | OSError):
            _log.error("what runs could not be looked after", exc_info=error)
        if self._failed_looks == LOOKS:
            say(f"{DOUBT}, so requests are refused: {error}")


def _no_longer_valid() -> RefusalError:
    return no_key("this key is no longer valid")


def _other_key(*, admin: bool) -> RefusalError:
    """What whoever holds a key hears, where it is the other kind that is needed."""
    if admin:
        return no_key("this is an app's key: /metrics and the admin port need the admin's")
    return no_key("this is the admin's key: an app needs its own")

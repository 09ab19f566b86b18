"""Live models are kept up to date: when somebody asks, and by looking now and then what their references mean.

A new version is found, loaded, warmed up and asked its golden questions on a thread of its own, beside the one that
answers. Only then does it take its place; the one before finishes what it was asked, and goes. What fails on the way
leaves everything as it was, and is not tried again at every look.

Workers of one server share a folder: a reload that one is asked for is a file there, which the others find, obey and
answer with a file of theirs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeVar

import torch

from seqapp.references import Unreachable
from serving.engine import THREAD_PREFIX, Late
from serving.models import Found, LiveModel, Models, Place, UnknownModel, reason

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_PAUSE = 1800.0
"""Seconds after which what has failed is tried again, at the latest."""
GLANCE = 0.25
"""Seconds between two looks at what other workers want."""
LOADERS = 2
"""Models that are looked for or loaded at once: one that hangs holds up no other, and answers hardly slow down."""
RANK = ("unchanged", "swapped", "kept")


@dataclass(frozen=True)
class Outcome:
    """What a reload did at one place.

    Args:
        model: what a client calls it, or the reference of what was never live.
        reference: what was asked for.
        outcome: unchanged, swapped, or kept because of ``reason``.
        before: the version that was live; None if there was none.
        after: the version that is; None if there is none.
        reason: why what was asked for is not live.
    """

    model: str
    reference: str
    outcome: Literal["unchanged", "swapped", "kept"]
    before: str | None
    after: str | None
    reason: str = ""


@dataclass(frozen=True)
class Reloaded:
    """What a reload did in every worker.

    Args:
        outcomes: of each place the one that matters most.
        workers: how many have told.
        missing: process ids of those that have not.
    """

    outcomes: list[Outcome]
    workers: int = 1
    missing: Sequence[int] = ()


class Reloader:
    """Replaces live models. It belongs to one event loop.

    Args:
        models: what is live.
        poll_seconds: between two looks at what references mean; 0 looks only when asked.
        drain_seconds: how long a model that was replaced may finish what it was asked.
        patience: how long to wait for what other workers tell.
        state: the folder that workers share; None if there is one only.
    """

    def __init__(
        self,
        models: Models,
        *,
        poll_seconds: float = 30.0,
        drain_seconds: float = 300.0,
        patience: float = 120.0,
        state: Path | None = None,
    ) -> None:
        self._models, self._poll_seconds, self._drain_seconds = models, poll_seconds, drain_seconds
        self._patience = patience
        self._folder = None if state is None else state / "reload"
        self._pid = os.getpid()
        self._locks: defaultdict[Place | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._going: set[asyncio.Task[Any]] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._obeyed: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look, and obey other workers, until the end of the context."""
        tasks = []
        if self._poll_seconds and self._models.deployments:
            tasks.append(asyncio.create_task(self._poll()))
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            _write(self._folder / f"worker-{self._pid}", {})
            tasks.append(asyncio.create_task(self._obey(self._folder)))
        try:
            yield
        finally:
            ending = [*tasks, *self._going]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            if self._folder is not None:
                (self._folder / f"worker-{self._pid}").unlink(missing_ok=True)
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None

    async def reload(self, name: str | None = None, deadline: float | None = None) -> Reloaded:
        """Bring what references mean now to life, here and in the other workers.

        Args:
            name: of one model or deployment, or a reference that was refused; None takes all.
            deadline: of the answer, in seconds of ``time.monotonic``.

        Raises:
            UnknownModel: if there is no such.
            Late: when the deadline passes; the reload goes on.
        """
        self._places(name)
        task = self._start(self._everywhere(name))
        await asyncio.wait([task], timeout=None if deadline is None else deadline - monotonic())
        if not task.done():
            raise Late("the reload takes longer, and goes on; GET /v1/models tells what is live")
        return task.result()

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """``work``, which goes on whoever waits for it, at most until the end of :meth:`running`."""
        task = asyncio.create_task(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        return task

    async def _everywhere(self, name: str | None) -> Reloaded:
        if self._folder is None:
            return Reloaded(await self.renew(name))
        return await self._spread(self._folder, name)

    async def renew(self, name: str | None = None, *, asked: bool = True) -> list[Outcome]:
        """:meth:`reload`, in this worker only; no place waits for another.

        Args:
            name: as there.
            asked: by a person, and not by the clock: what has failed is tried again.
        """
        outcomes = await asyncio.gather(*[self._in_turn(place, asked=asked) for place in self._places(name)])
        for one in outcomes:
            if asked or one.outcome == "swapped":  # a look that finds nothing is no reload
                self._models.opener.observer.reloaded(one.model, one.outcome)
        return outcomes

    def _places(self, name: str | None) -> list[Place]:
        places = self._models.places
        if name is None:
            return places
        chosen = [one for one in places if name in (one.title, one.deployed.name, one.wanted.reference)]
        if not chosen:
            model = self._models.get(name)
            chosen = [one for one in places if one.live is model]
        return chosen

    async def _in_turn(self, place: Place, *, asked: bool) -> Outcome:
        if not asked and self._locks[place].locked():  # somebody is at it
            return self._outcome(place, "unchanged", place.live)
        async with self._locks[place]:
            if any(other.live for other in place.deployed.places):
                return await self._renew(place, asked=asked)
            # The first of a deployment settles its name and its task, which others must know.
            async with self._locks[None]:
                return await self._renew(place, asked=asked)

    async def _renew(self, place: Place, *, asked: bool) -> Outcome:
        before = place.live
        dead = before is not None and not before.engine.alive
        if not asked and not dead:
            if before is not None and before.pinned:
                return self._outcome(place, "unchanged", before)
            if not place.failed and monotonic() < place.again:
                return self._outcome(place, "kept", before)
        failed = ""
        try:
            found = await self._aside(lambda: self._models.opener.find(place.wanted.reference))
            if before is not None and not dead and found.key == before.key:
                return self._unchanged(place, before, found)
            failed = found.key
            if not asked and failed == place.failed and monotonic() < place.again:
                return self._outcome(place, "kept", before)
            model = await self._opened(place, found)
        except Exception as error:
            self._keep(place, failed, error, asked=asked)
            return self._outcome(place, "kept", before)
        if before is not None and not dead and (model.digest, model.reference) == (before.digest, before.reference):
            model.engine.close()  # somebody has touched the files, and changed nothing
            before.key = model.key
            return self._unchanged(place, before, found)
        self._models.put(place, model, self._drain_seconds)
        log.info("%s is live in version %s, before: %s", model.id, model.version, before.version if before else "none")
        return self._outcome(place, "swapped", before)

    def _unchanged(self, place: Place, live: LiveModel, found: Found) -> Outcome:
        if place.reason:
            log.info("%s: version %s is again what was asked for", place.title, live.version)
        place.reason, place.failed = "", ""
        if found.since and not live.since:
            log.warning("%s: version %s stays, as was known at %s: %s", place.title, live.version, found.since,
                        self._models.opener.cache.trouble)  # fmt: skip
        elif live.since and not found.since:
            log.info("%s: the tracking server answers again; version %s stays", place.title, live.version)
        live.since = found.since
        place.failures = place.failures + 1 if found.since else 0
        place.again = self._pause(place) if found.since else 0.0
        if not found.since:
            return self._outcome(place, "unchanged", live)
        silent = f"{self._models.opener.cache.trouble}; at {found.since} it had version {live.version}"
        return replace(self._outcome(place, "kept", live), reason=silent)

    async def _opened(self, place: Place, found: Found) -> LiveModel:
        # More than two versions must never be in memory.
        if place.leaving is not None:
            await asyncio.wait([place.leaving])
        taken = self._models.names
        return await self._aside(lambda: self._models.opener.open(found, place, taken))

    def _keep(self, place: Place, failed: str, error: Exception, *, asked: bool) -> None:
        known = place.reason and (place.failed == failed)
        place.reason = reason(error)
        place.failures = place.failures + 1 if known else 1
        place.failed = failed
        # To look at a directory costs nothing; what is being written there will be whole in a moment.
        place.again = self._pause(place) if failed or isinstance(error, Unreachable) else 0.0
        if not asked and failed:
            self._models.opener.observer.reloaded(place.title, "kept")
        if not known:
            stays = f"version {place.live.version} stays" if place.live else "nothing answers in its place"
            log.warning("%s: %s is not live, %s: %s", place.title, place.wanted.reference, stays, place.reason)

    def _pause(self, place: Place) -> float:
        return monotonic() + min(LONGEST_PAUSE, max(self._poll_seconds, 1.0) * 2.0 ** min(place.failures, 16))

    def _outcome(self, place: Place, outcome: Literal["unchanged", "swapped", "kept"], before: LiveModel | None
                 ) -> Outcome:  # fmt: skip
        return Outcome(place.title, place.wanted.reference, outcome, before.version if before else None,
                       place.live.version if place.live else None, place.reason)  # fmt: skip

    async def _aside(self, work: Callable[[], T]) -> T:
        """``work()`` on a thread that is neither the event loop's nor an engine's."""
        if self._threads is None:
            threads = self._models.opener.threads
            self._threads = ThreadPoolExecutor(LOADERS, f"{THREAD_PREFIX}-loader", torch.set_num_threads, (threads,))
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            self._start(self._look())  # the next does not wait for a place where this one takes long

    async def _look(self) -> None:
        try:
            outcomes = await self.renew(asked=False)
            if self._folder is not None and any(one.outcome == "swapped" for one in outcomes):
                await self._spread(self._folder, None)  # the others would find it, too, but later
        except Exception:
            log.exception("a look for new versions failed")

    async def _obey(self, folder: Path) -> None:
        """Do what other workers ask for. One that has just started finds what it may have missed while it loaded."""
        while True:
            try:
                files = {file.name: file for file in folder.glob("ask-*.json")}
                for name in sorted(files.keys() - self._obeyed):
                    self._obeyed.add(name)
                    self._start(self._tell(folder, files[name]))
                self._obeyed &= files.keys()
            except Exception:
                log.exception("what other workers ask for is not known")
            await asyncio.sleep(GLANCE)

    async def _tell(self, folder: Path, ask: Path) -> None:
        try:
            try:
                outcomes = await self.renew(json.loads(ask.read_text(encoding="utf-8"))["name"])
            except FileNotFoundError:  # whoever asked waits no longer
                return
            except UnknownModel:
                outcomes = []
            identity = ask.stem.partition("-")[2]
            told = folder / f"told-{identity}-{self._pid}.json"
            _write(told, [asdict(one) for one in outcomes])
            if not ask.exists():
                told.unlink(missing_ok=True)
        except Exception:
            log.exception("a reload that another worker asked for failed")

    async def _spread(self, folder: Path, name: str | None) -> Reloaded:
        identity = uuid.uuid4().hex
        ask = folder / f"ask-{identity}.json"
        self._obeyed.add(ask.name)
        others = _workers(folder) - {self._pid}
        _write(ask, {"name": name})
        try:
            told = [await self.renew(name)]
            end = monotonic() + self._patience
            while True:
                found = {int(file.stem.rpartition("-")[2]): file for file in folder.glob(f"told-{identity}-*.json")}
                missing = others & _workers(folder) - set(found)
                if not missing or monotonic() > end:
                    break
                await asyncio.sleep(GLANCE / 4)
            told += [[Outcome(**one) for one in json.loads(file.read_text())] for file in found.values()]
        finally:
            for file in folder.glob(f"*-{identity}*"):
                file.unlink(missing_ok=True)
            self._obeyed.discard(ask.name)
        return Reloaded(_worst(told), len(told), sorted(missing))


def _worst(told: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """Of each place what matters most of what the workers did."""
    found: dict[str, Outcome] = {}
    for one in (one for outcomes in told for one in outcomes):
        known = found.setdefault(one.reference, one)
        if RANK.index(one.outcome) > RANK.index(known.outcome):
            found[one.reference] = replace(one)
    return list(found.values())


def _workers(folder: Path) -> set[int]:
    """Process ids of the workers that live."""
    return {pid for file in folder.glob("worker-*") if _alive(pid := int(file.name.partition("-")[2]))}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _write(file: Path, content: Any) -> None:
    """The file appears whole, under a name that nobody reads before."""
    handle, draft = tempfile.mkstemp(prefix=".draft-", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        os.replace(draft, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise

"""Which bundles are live: references become loaded, checked models, or a reason why not.

A deployment is a name and the versions that answer to it; each version has a place, in which one model after the other
may be live. Routes ask :meth:`Models.find` for a model and then that model, so an answer is of one version, whatever
goes live meanwhile. Everything here but :class:`Opener` belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import re
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from seqapp import bundle, references
from seqapp.bundle import MANIFEST, Bundle
from seqapp.errors import BundleError, SeqappError
from seqapp.references import BUNDLE, Reference
from seqapp.registry import suggest
from serving.cache import Cache
from serving.deployment import Deployment, Wanted, plain
from serving.engine import THREAD_PREFIX, Answer, Engine, Late, Limits, Overloaded, Pieces
from serving.logs import note
from serving.observer import Observer

log = logging.getLogger(__name__)

DIGITS = 12
"""How much of a bundle's SHA-256 stands for a version where no registry has given one."""


WARM_UP = 120.0
"""Seconds in which a model must have answered its golden questions as clients ask, before it goes live."""
DIRECTORY = "directory "
"""The key of what is no registry's begins with it."""


class UnknownModel(SeqappError):
    """No live model has this name, or none does this task."""


@dataclass(eq=False)
class LiveModel:
    """A model that answers.

    Args:
        id: by which a client gets this one, and an answer tells it.
        reference: where it was found.
        bundle: the loaded bundle.
        engine: which computes it.
        card: Markdown.
        loaded_at: when it was loaded.
        digest: SHA-256 of its manifest.
        key: changes when its reference means something else.
        since: what its reference means was last told at this time, by a registry that did not answer; else "".
        shadowed: by what else is asked what it is asked.
    """

    id: str
    reference: Reference
    bundle: Bundle
    engine: Engine
    card: str
    loaded_at: datetime
    digest: str = ""
    key: str = ""
    since: str = ""
    shadowed: Shadow | None = None

    @property
    def task(self) -> str:
        return self.bundle.manifest.task

    @property
    def version(self) -> str:
        """In the registry; of what has none, the beginning of its digest."""
        return self.reference.version or self.digest[:DIGITS]

    @property
    def pinned(self) -> bool:
        """Whether its reference can mean nothing else some day, and the registry has said what it means."""
        return not (self.key.startswith(DIRECTORY) or self.reference.alias or self.since)

    @property
    def source(self) -> str:
        """Where it came from, in words."""
        if self.since:
            return f"cache since {self.since}"
        return "directory" if self.key.startswith(DIRECTORY) else "registry"

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Figures per split, such as ``{"test": {"accuracy": 0.81}}``; what is no finite number is left out."""
        found = self.bundle.metrics.get("scores") if isinstance(self.bundle.metrics, dict) else None
        return {
            split: {name: float(value) for name, value in figures.items() if _is_figure(value)}
            for split, figures in (found if isinstance(found, dict) else {}).items()
            if isinstance(figures, dict)
        }

    async def predict(self, inputs: Sequence[Any], deadline: float | None = None) -> Answer:
        """What :meth:`serving.engine.Engine.predict` answers; a shadow is asked behind its back."""
        note(model=self.id, version=self.version, inputs=len(inputs), given=list(inputs))
        answer = await self.engine.predict(inputs, deadline=deadline)
        if self.shadowed is not None:
            self.shadowed.ask(inputs, answer.outputs, busy=self.engine.load.waiting > 0)
        return answer

    def stream(self, inputs: Sequence[Any], deadline: float | None = None) -> Pieces:
        """What :meth:`serving.engine.Engine.stream` answers; no shadow is asked."""
        note(model=self.id, version=self.version, inputs=len(inputs), given=list(inputs))
        return self.engine.stream(inputs, deadline=deadline)


class Shadow:
    """What is asked the same as live models after they have answered, and answers nobody.

    It is asked one request at a time, and none while requests wait for the live model; those are dropped.

    Args:
        observer: told whether it agrees.
    """

    def __init__(self, observer: Observer) -> None:
        self.model: LiveModel | None = None
        self.compared = self.agreed = self.dropped = 0
        self._observer = observer
        self._asking: asyncio.Task[None] | None = None

    def ask(self, inputs: Sequence[Any], outputs: Sequence[Any], *, busy: bool) -> None:
        """Compare what it says of ``inputs`` with ``outputs``, some time.

        Args:
            inputs: each a ``task.Input``.
            outputs: what the live model has answered.
            busy: requests wait for the live model.
        """
        if self.model is None:
            return
        if busy or self._asking is not None:
            self.dropped += 1
            return
        self._asking = asyncio.get_running_loop().create_task(self._compare(self.model, inputs, outputs))

    async def _compare(self, model: LiveModel, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        try:
            await asyncio.sleep(0)  # the answer that was given goes out first
            said = await model.engine.predict(inputs)
            agrees = await asyncio.to_thread(_same, said.outputs, outputs)
            self.compared += 1
            self.agreed += agrees
            if model is self.model:  # what is no more is not counted
                self._observer.shadow(model.task, model.id, model.version, agrees=agrees)
            if self.compared & (self.compared - 1) == 0:  # 1, 2, 4, ...: the log says it, and never grows long
                log.info("the shadow %s, version %s, agreed %d of %d times; %d requests were too many to ask it, too",
                         model.id, model.version, self.agreed, self.compared, self.dropped)  # fmt: skip
        except Exception as error:  # it must not concern anybody
            self.dropped += 1
            log.debug("the shadow %s did not answer: %s", model.id, error)
        finally:
            self._asking = None


@dataclass(eq=False)
class Deployed:
    """A name that is served."""

    name: str | None
    """None until its only version was found."""
    places: list[Place] = field(default_factory=list)
    shadow: Place | None = None


@dataclass(eq=False)
class Place:
    """Where one version of a deployment stands: what was asked for, what answers, and why nothing newer does."""

    deployed: Deployed
    wanted: Wanted
    shadow: Shadow | None = None
    """If it is the place of a shadow."""
    live: LiveModel | None = None
    reason: str = ""
    """Why what was asked for is not live."""
    failed: str = ""
    """The key of what went wrong; "" if it is not known what that would have been."""
    failures: int = 0
    again: float = 0.0
    """The monotonic time before which nobody but a person tries again."""
    leaving: asyncio.Task[None] | None = None
    """The model before finishes what it was asked."""

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.live.id if self.live else self.deployed.name or self.wanted.reference


@dataclass(frozen=True)
class Refusal:
    """A model that does not go live."""

    reference: str
    reason: str

    def __str__(self) -> str:
        # Most reasons begin with what was asked for, as it was understood.
        named = rf"{re.escape(self.reference)}(@champion)?: "
        return f"{self.reference} is not live: {re.sub(f'^{named}', '', self.reason)}"


@dataclass(frozen=True)
class Found:
    """What a reference means just now."""

    key: str
    reference: Callable[[], Reference]
    """Fetches it."""
    name: str
    version: str
    alias: str
    since: str


class Opener:
    """Makes a live model of a reference. Its methods take their time, and are for a thread that may.

    Args:
        threads: of one forward pass.
        tasks: those that a route answers. None takes every task.
        observer: is told what happens to the models.
        limits: what may wait for one of them.
        cache: of what a tracking server said and gave; by default that of the user.
    """

    def __init__(
        self,
        threads: int,
        tasks: Collection[str] | None = None,
        observer: Observer | None = None,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        cache: Cache | None = None,
    ) -> None:
        self.threads, self.tasks, self.observer, self.limits = threads, tasks, observer or Observer(), limits
        self._given = cache

    @cached_property
    def cache(self) -> Cache:
        return self._given or Cache()

    def find(self, reference: str) -> Found:
        """What ``reference`` means, without a download.

        Raises:
            ReferenceNotFound: saying what was looked for and what there is.
            Unreachable: if the tracking server does not answer, and the cache does not know.
        """
        local = references.local(reference)
        if local is not None:
            return Found(f"{DIRECTORY}{_seen(local.path)}", lambda: local, _local_name(local), "", "", "")
        target, since = self.cache.locate(reference)

        def fetch() -> Reference:
            return Reference(self.cache.fetch(target), target.name, target.version, target.alias)

        return Found(f"{target.uri} {target.stamp}", fetch, target.name, target.version, target.alias, since)

    def open(self, found: Found, place: Place, taken: Collection[str]) -> LiveModel:
        """Load what was found and warm it up; it has the answers that it had when it was written.

        Args:
            found: by :meth:`find`.
            place: where it is to stand.
            taken: names that are served.

        Raises:
            SeqappError: saying why it cannot go live.
        """
        deployed = place.deployed
        name = deployed.name or _free_name(found, taken)
        reference = found.reference()
        digest = _digest(reference.path)
        loaded = bundle.load(reference.path)
        task = loaded.manifest.task
        if self.tasks is not None and task not in self.tasks:
            raise SeqappError(f"no HTTP route answers the task {task!r}, only {', '.join(sorted(self.tasks))}; "
                              "`seqapp predict` does")  # fmt: skip
        others = next((place.live.task for place in deployed.places if place.live), task)
        if others != task:
            raise SeqappError(f"{name} answers the task {others!r}, and this model is for {task!r}")
        loaded.check_golden()
        if _digest(reference.path) != digest:
            raise BundleError(f"{reference.path}: another bundle was put there while this one was read")
        version = found.version or digest[:DIGITS]
        several = place.shadow is not None or len(deployed.places) > 1
        identity = (f"{name}@{found.alias}" if found.alias else f"{name}/{version}") if several else name
        # A card that the manifest does not list may be a link to anything.
        listed = "README.md" in loaded.manifest.files
        card = (reference.path / "README.md").read_text(encoding="utf-8") if listed else ""
        engine = Engine(
            loaded, self.threads, name=identity, version=version, limits=self.limits, observer=self.observer
        )
        try:
            _in_a_loop(partial(_warm_up, loaded, engine))
        except BaseException:
            engine.close()
            if not (place.live and (place.live.id, place.live.version) == (identity, version)):
                self.observer.live(task, identity, version, is_live=False)
            raise
        return LiveModel(identity, reference, loaded, engine, card, datetime.now(UTC), digest, found.key, found.since)


class Models:
    """The live models, in order of preference: the first of a task answers when a request names none.

    Args:
        deployments: in order of preference.
        opener: opens what goes live later.
        seed: of the choice among the versions of a deployment; None draws one.
    """

    def __init__(
        self, deployments: Sequence[Deployed] = (), opener: Opener | None = None, seed: int | None = None
    ) -> None:
        self.deployments = list(deployments)
        self.opener = opener or Opener(1)
        self._random = random.Random(seed)
        self._leaving: set[asyncio.Task[None]] = set()
        self._index()

    def __iter__(self) -> Iterator[LiveModel]:
        return (place.live for deployed in self.deployments for place in deployed.places if place.live)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def places(self) -> list[Place]:
        """Of every version and shadow."""
        return [place for deployed in self.deployments for place in (*deployed.places, deployed.shadow) if place]

    @property
    def names(self) -> set[str]:
        """Of the deployments, as far as they are known."""
        return {deployed.name for deployed in self.deployments if deployed.name}

    @property
    def refused(self) -> list[Refusal]:
        """What was asked for and is not live, with nothing in its place."""
        return [Refusal(place.wanted.reference, place.reason) for place in self.places if not place.live]

    @property
    def kept(self) -> list[Refusal]:
        """What was asked for later and is not live, so that the model before it still is."""
        return [Refusal(place.title, place.reason) for place in self.places if place.live and place.reason]

    def get(self, name: str) -> LiveModel:
        """The model called ``name``, or a version of the deployment called so, drawn by weight.

        Args:
            name: of a deployment, ``name/version``, ``name@alias`` or the id of a model.

        Raises:
            UnknownModel: saying which there are.
        """
        if name in self._drawn:
            return self._draw(self._drawn[name])
        if name in self._named:
            return self._named[name]
        known = list(dict.fromkeys([*self._drawn, *(model.id for model in self)]))
        raise UnknownModel(f"no model is called {name[:80]!r}; {suggest(name[:80], known)}")

    def find(self, task: str, name: str | None = None) -> LiveModel:
        """The model called ``name``, or the first one of ``task``.

        Raises:
            UnknownModel: if there is none, or it does another task.
        """
        if name is None:
            if task not in self._defaults:
                raise UnknownModel(f"no {task} model is live")
            return self._draw(self._defaults[task])
        model = self.get(name)
        if model.task != task:
            known = ", ".join(other.id for other in self if other.task == task) or "none"
            raise UnknownModel(f"{name!r} is a {model.task} model; {task} models: {known}")
        return model

    def each(self, task: str) -> list[LiveModel]:
        """One model of each deployment of ``task``, drawn by weight."""
        return [self._draw(versions) for versions in self._drawn.values() if versions.models[0].task == task]

    def default(self, task: str) -> str | None:
        """The name of the deployment that answers requests of ``task`` that name no model."""
        versions = self._defaults.get(task)
        return next((name for name, one in self._drawn.items() if one is versions), None)

    def weight(self, model: LiveModel) -> float:
        """Its share of the requests that name its deployment and no version."""
        versions = next((one for one in self._drawn.values() if model in one.models), None)
        return versions.share(model) if versions else 0.0

    def put(self, place: Place, model: LiveModel, drain_seconds: float = 0.0) -> None:
        """Let ``model`` answer at ``place`` from now on; the one before finishes what it was asked, and goes.

        Args:
            place: one of this object's.
            model: warmed up.
            drain_seconds: how long the one before may go on; with one before, this needs a running event loop.
        """
        before, place.live = place.live, model
        place.deployed.name = place.deployed.name or model.id
        place.reason, place.failed, place.failures, place.again = "", "", 0, 0.0
        self._index()
        self.opener.observer.live(model.task, model.id, model.version, is_live=True)
        if before is not None:
            place.leaving = asyncio.get_running_loop().create_task(self._retire(before, drain_seconds))
            self._leaving.add(place.leaving)
            place.leaving.add_done_callback(self._leaving.discard)

    def close(self) -> None:
        """Stop every engine."""
        for task in self._leaving:
            task.cancel()
        for place in self.places:
            if place.live:
                place.live.engine.close()

    async def _retire(self, model: LiveModel, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await model.engine.drain()
        except TimeoutError:
            log.warning("%s, version %s, was replaced %g s ago and still answers; it is stopped", model.id,
                        model.version, seconds)  # fmt: skip
        finally:
            model.engine.close()
            await asyncio.sleep(0)  # what the engine has to say of those that waited is said before the end
            if not any(other.version == model.version and other.id == model.id for other in self):
                self.opener.observer.live(model.task, model.id, model.version, is_live=False)

    def _draw(self, versions: _Versions) -> LiveModel:
        if len(versions.models) == 1:
            return versions.models[0]
        return self._random.choices(versions.models, cum_weights=versions.cumulative)[0]

    def _index(self) -> None:
        """Tables by name, so that what a client sends is looked up and nothing else."""
        self._drawn: dict[str, _Versions] = {}
        self._defaults: dict[str, _Versions] = {}
        self._named: dict[str, LiveModel] = {}
        others: dict[str, LiveModel] = {}
        for deployed in self.deployments:
            if deployed.shadow and deployed.shadow.shadow:
                deployed.shadow.shadow.model = deployed.shadow.live
            live = [(place.live, place.wanted.weight) for place in deployed.places if place.live]
            for model, _ in live:
                model.shadowed = deployed.shadow.shadow if deployed.shadow else None
                self._named.setdefault(model.id, model)
                for name, table in ((deployed.name, self._named), (model.reference.name, others)):
                    table.setdefault(f"{name}/{model.version}", model)
                    if model.reference.alias:
                        table.setdefault(f"{name}@{model.reference.alias}", model)
            drawn = [(model, weight) for model, weight in live if weight]
            if drawn and deployed.name is not None:
                models, weights = zip(*drawn, strict=True)
                versions = self._drawn[deployed.name] = _Versions(list(models), list(accumulate(weights)))
                self._defaults.setdefault(models[0].task, versions)
        self._named = {**others, **self._named}


@dataclass(frozen=True)
class _Versions:
    """The versions that one is drawn from."""

    models: list[LiveModel]
    cumulative: list[float]

    def share(self, model: LiveModel) -> float:
        place = self.models.index(model)
        before = self.cumulative[place - 1] if place else 0.0
        return (self.cumulative[place] - before) / self.cumulative[-1]


def go_live(
    references: Sequence[str] = (),
    threads: int | None = None,
    tasks: Collection[str] | None = None,
    *,
    deployments: Sequence[Deployment] = (),
    observer: Observer | None = None,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    cache: Cache | None = None,
    seed: int | None = None,
) -> Models:
    """Load the bundles that are asked for, and ask each its golden questions; one that fails is refused.

    Args:
        references: bundle directories, ``name@alias``, ``name/version`` or run ids.
        threads: of one forward pass; by default the cores are shared out evenly.
        tasks: those that a route answers; a model of another is refused. None takes every task.
        deployments: stand before ``references``; without both, every champion is asked for.
        observer: is told what happens.
        limits: what may wait for one model.
        cache: of what a tracking server said and gave; by default that of the user.
        seed: of the choice among the versions of a deployment; None draws one.

    Raises:
        ReferenceNotFound: if nothing is asked for and the registry has no champion.
    """
    opener = Opener(1, tasks, observer, limits, cache)
    wanted = [*deployments, *plain(references)]
    if not wanted:
        champions, since = opener.cache.champions()
        if since:
            log.warning("the champions are those of %s: %s", since, opener.cache.trouble)
        wanted = plain(champions)
    many = sum(len(one.versions) + (one.shadow is not None) for one in wanted)
    opener.threads = threads or max(1, torch.get_num_threads() // many)
    models = Models([_deployed(one, opener.observer) for one in wanted], opener, seed)
    for place in models.places:
        try:
            found = opener.find(place.wanted.reference)
            place.failed = found.key
            models.put(place, opener.open(found, place, models.names))
        except Exception as error:  # a damaged bundle may fail in a way nobody thought of; the others still go live
            place.reason = reason(error)
        if place.live and place.live.since:
            log.warning("%s is served from the cache, as it was known at %s: %s", place.title, place.live.since,
                        opener.cache.trouble)  # fmt: skip
    return models


def reason(error: Exception) -> str:
    """Why a model is not live, for a person."""
    if isinstance(error, SeqappError):
        return str(error)
    log.debug("unforeseen", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _deployed(wanted: Deployment, observer: Observer) -> Deployed:
    deployed = Deployed(wanted.name)
    deployed.places = [Place(deployed, version) for version in wanted.versions]
    if wanted.shadow is not None:
        deployed.shadow = Place(deployed, Wanted(wanted.shadow, 0.0), Shadow(observer))
    return deployed


async def _warm_up(loaded: Bundle, engine: Engine) -> None:
    """Ask the golden questions one by one and then all at once, as clients will.

    Raises:
        SeqappError: if the answers take too long.
    """
    inputs, _ = loaded.golden()
    end = monotonic() + WARM_UP
    try:
        for asked in [*([one] for one in inputs), inputs]:
            if asked:
                await engine.predict(asked, end)
    except (Late, Overloaded):
        raise SeqappError(f"it has not answered its golden questions within {WARM_UP:g} s") from None


def _in_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` to its end in an event loop of its own, whether or not this thread is in one."""
    with ThreadPoolExecutor(1, f"{THREAD_PREFIX}-warm-up") as thread:
        thread.submit(lambda: asyncio.run(work())).result()


def _digest(path: Path) -> str:
    bundle.read_manifest(path)
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def _seen(path: Path) -> str:
    """Changes when a bundle directory is written to: of its manifest the digest, of its files size and time."""
    manifest = bundle.read_manifest(path)
    digest = hashlib.sha256((path / MANIFEST).read_bytes())
    for name in manifest.files:
        try:
            file = (path / name).stat()
            digest.update(f"{name} {file.st_size} {file.st_mtime_ns}\n".encode())
        except (OSError, ValueError):
            digest.update(f"{name} is missing\n".encode())
    return digest.hexdigest()


def _local_name(found: Reference) -> str:
    # A run keeps its bundle in a folder of this name, which tells nothing; the folder above is the run.
    return found.path.resolve().parent.name if found.name == BUNDLE else found.name


def _free_name(found: Found, taken: Collection[str]) -> str:
    # Two versions of one registered model may be live side by side.
    full = f"{found.name}@{found.alias}" if found.alias else f"{found.name}@v{found.version}"
    full = full if found.alias or found.version else found.name
    free = next((candidate for candidate in (found.name, full) if candidate not in taken), None)
    if free is None:
        raise SeqappError(f"a model called {full!r} is live already; rename one of the two directories")
    return free


def _same(got: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether two models gave the same labels and texts; figures may differ."""

    def words(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: words(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [words(inner) for inner in value]
        return value if isinstance(value, str) else None

    return [words(one.model_dump()) for one in got] == [words(one.model_dump()) for one in expected]


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

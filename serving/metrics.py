"""What is counted, for Prometheus: of one process, or of all that share a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import NamedTuple, ParamSpec

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.observer import Observer

log = logging.getLogger(__name__)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the buckets of times: from a short text alone to a long stream."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the buckets of batch sizes."""
MODEL = ("task", "model", "version")

disable_created_metrics()  # type: ignore[no-untyped-call]


P = ParamSpec("P")


def _quietly(count: Callable[P, None]) -> Callable[P, None]:
    """``count``, but a figure that cannot be written, such as on a full disk, is lost and nothing else."""

    @wraps(count)
    def counted(*args: P.args, **kwargs: P.kwargs) -> None:
        global _failing
        try:
            count(*args, **kwargs)
        except Exception:
            if not _failing:
                log.exception("what happens is not counted")
            _failing = True
        else:
            _failing = False

    return counted


_failing = False


class _Children(NamedTuple):
    """The figures of one version of a model, looked up once."""

    queue: Histogram
    computed: Histogram
    batch: Histogram
    step: Histogram
    tokens: Counter
    waiting: Gauge
    in_flight: Gauge
    live: Gauge


class Metrics(Observer):
    """Counts what it is told. Labels are names that the server gave, never what a client sent.

    Where ``PROMETHEUS_MULTIPROC_DIR`` was set before prometheus_client was imported, all processes with the same
    folder count together, and each of them tells the figures of all.

    Args:
        tasks: the task that a route asks, by the template of its path.
    """

    def __init__(self, tasks: Mapping[str, str] | None = None) -> None:
        self._tasks = tasks or {}
        self._folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._registry = registry = CollectorRegistry()
        registry.register(_Memory(None))
        self._http = Counter("seqapp_http_requests_total", "Answers by status", ("task", "outcome"), registry=registry)
        self._http_seconds = Histogram(
            "seqapp_http_request_seconds",
            "From the first byte of a POST request to the last of its answer",
            ("task",),
            registry=registry,
            buckets=SECONDS,
        )
        self._refused = Counter(
            "seqapp_refused_total", "Requests that no model saw, by kind of problem", ("outcome",), registry=registry
        )
        self._requests = Counter(
            "seqapp_requests_total", "Requests that left a model", (*MODEL, "outcome"), registry=registry
        )
        self._reloads = Counter("seqapp_reloads_total", "Reloads of a model", ("model", "outcome"), registry=registry)
        self._shadow = Counter(
            "seqapp_shadow_total", "Answers of a shadow beside the live model's", (*MODEL, "outcome"), registry=registry
        )
        self._queue = Histogram(
            "seqapp_queue_seconds", "Wait of a request for its first step", MODEL, registry=registry, buckets=SECONDS
        )
        self._computed = Histogram(
            "seqapp_model_seconds", "Steps that a request was in", MODEL, registry=registry, buckets=SECONDS
        )
        self._batch = Histogram("seqapp_batch_inputs", "Inputs of a step", MODEL, registry=registry, buckets=SIZES)
        self._step = Histogram("seqapp_step_seconds", "Time of a step", MODEL, registry=registry, buckets=SECONDS)
        self._tokens = Counter("seqapp_tokens_total", "Tokens written", MODEL, registry=registry)
        self._waiting = Gauge(
            "seqapp_inputs_waiting", "Inputs before their first step", MODEL, registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._in_flight = Gauge(
            "seqapp_inputs_in_flight", "Inputs accepted and not answered", MODEL, registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._live = Gauge(
            "seqapp_model_live", "Processes in which a version answers", MODEL, registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._by_model = (self._requests, self._shadow, self._queue, self._computed, self._batch, self._step,
                          self._tokens, self._waiting, self._in_flight, self._live)  # fmt: skip
        self._of_model: dict[tuple[str, str, str], _Children] = {}
        self._of_outcome: dict[tuple[str, str, str, str], Counter] = {}
        self._of_answer: dict[tuple[str, int], Counter] = {}

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All figures, and their media type.

        Args:
            accept: what the client takes, as its header says.
        """
        registry = self._registry
        if self._folder:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, self._folder)  # type: ignore[no-untyped-call]
            registry.register(_Memory(self._folder))
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type

    @_quietly
    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        task = self._tasks.get(route, "")
        answer = self._of_answer.get((task, status))
        if answer is None:
            answer = self._of_answer[task, status] = self._http.labels(task, str(status))
        answer.inc()
        if method == "POST":
            self._http_seconds.labels(task).observe(seconds)

    @_quietly
    def finished(
        self, task: str, model: str, version: str, outcome: str, *, queued: float, computed: float, tokens: int
    ) -> None:
        key = (task, model, version, outcome)
        if key not in self._of_outcome:
            self._of_outcome[key] = self._requests.labels(*key)
        self._of_outcome[key].inc()
        if outcome in ("overloaded", "invalid"):
            return
        of = self._children(task, model, version)
        of.queue.observe(queued)
        of.computed.observe(computed)
        if tokens:
            of.tokens.inc(tokens)

    @_quietly
    def batch(self, task: str, model: str, version: str, *, inputs: int, seconds: float) -> None:
        of = self._children(task, model, version)
        of.batch.observe(inputs)
        of.step.observe(seconds)

    @_quietly
    def load(self, task: str, model: str, version: str, *, waiting: int, running: int) -> None:
        of = self._children(task, model, version)
        of.waiting.set(waiting)
        of.in_flight.set(waiting + running)

    @_quietly
    def live(self, task: str, model: str, version: str, *, is_live: bool) -> None:
        if is_live or self._folder:
            of = self._children(task, model, version)
            of.live.set(is_live)
            if not is_live:
                of.waiting.set(0)
                of.in_flight.set(0)
            return
        # One that is no more would be told for ever; with several processes prometheus_client cannot forget it.
        self._of_model.pop((task, model, version), None)
        for key in list(self._of_outcome):
            if key[:3] == (task, model, version):
                del self._of_outcome[key]
        for family in self._by_model:
            family.remove_by_labels({"task": task, "model": model, "version": version})

    @_quietly
    def reloaded(self, model: str, outcome: str) -> None:
        self._reloads.labels(model, outcome).inc()

    @_quietly
    def refused(self, kind: str) -> None:
        self._refused.labels(kind).inc()

    @_quietly
    def shadow(self, task: str, model: str, version: str, *, agrees: bool) -> None:
        self._shadow.labels(task, model, version, "agrees" if agrees else "differs").inc()

    def _children(self, task: str, model: str, version: str) -> _Children:
        key = (task, model, version)
        found = self._of_model.get(key)
        if found is None:
            found = self._of_model[key] = _Children(
                self._queue.labels(*key),
                self._computed.labels(*key),
                self._batch.labels(*key),
                self._step.labels(*key),
                self._tokens.labels(*key),
                self._waiting.labels(*key),
                self._in_flight.labels(*key),
                self._live.labels(*key),
            )
        return found


class _Memory(Collector):
    """The memory of this process, or of all that count in ``folder``; nothing where /proc does not tell."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        pids = {str(os.getpid())}
        if self._folder:
            pids = {file.stem.rpartition("_")[2] for file in Path(self._folder).glob("gauge_live*.db")}
        pages = 0
        for pid in pids:
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:  # it has just ended
                continue
        if pages:
            bytes_ = pages * os.sysconf("SC_PAGE_SIZE")
            yield GaugeMetricFamily("seqapp_resident_memory_bytes", "Memory of all worker processes", value=bytes_)

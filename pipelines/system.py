"""How busy the machine is while a network learns, as the page "System metrics" of MLflow shows it."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pipelines.outbox import Outbox, now

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

PREFIX = "system/"
INTERVAL = 5.0
"""Seconds that one point tells of; a shorter training has none."""


@contextmanager
def system_metrics(outbox: Outbox | None, *, interval: float = INTERVAL) -> Iterator[None]:
    """Log processor, memory, disk, network and, where there is one, GPU, every ``interval`` seconds until the end.

    MLflow's monitors measure. Its thread is not used: that asks the server each time, and ends when there is no answer.

    Args:
        outbox: of the run; a process without one logs nothing.
        interval: in seconds; ``MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL`` has the last word.
    """
    if outbox is None:
        yield
        return
    monitor: Any = SystemMetricsMonitor(outbox.run_id, sampling_interval=interval)  # type: ignore[no-untyped-call]
    ended = threading.Event()

    def take() -> dict[str, float]:
        monitor.collect_metrics()
        found = {f"{PREFIX}{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for part in monitor.monitors:
            part.clear_metrics()
        return found

    def watch() -> None:
        take()  # how busy a processor is, psutil tells since this thread has last asked
        for step in itertools.count(outbox.next_step(PREFIX)):
            if ended.wait(monitor.sampling_interval):
                return
            moment = now()
            outbox.log_batch(outbox.run_id, [Metric(name, value, moment, step) for name, value in take().items()])

    thread = threading.Thread(target=watch, daemon=True, name="system metrics")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

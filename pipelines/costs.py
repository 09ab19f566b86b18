"""What a model costs beside its quality: memory while it learns, time for one answer."""

from __future__ import annotations

import copy
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from seqapp.tasks import Task

INTERVAL = 0.05
"""Seconds between two looks at the memory."""
ANSWERS, ENOUGH = 100, 2.0
"""Most answers whose time is taken, and the seconds after which no further one is asked for."""


class PeakMemory(Callback):
    """The most memory that training held, in bytes: of the accelerator if one is used, else of the whole process.

    The memory of a process is its resident set, interpreter, libraries and data included, looked at twenty times a
    second; what it held before, from a training in the same process, counts as well. Checkpoints keep the figure, so
    that a resumed training tells the most of all its parts.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._device: torch.device | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            self._device = pl_module.device
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        self._over.clear()
        self._thread = threading.Thread(target=self._look, daemon=True, name="peak-memory")
        self._thread.start()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look_at_device()
        self._stop()

    def state_dict(self) -> dict[str, int]:
        self._look_at_device()
        return {"bytes": self.bytes}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.bytes = max(self.bytes, state_dict["bytes"])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None

    def _look_at_device(self) -> None:
        if self._device is not None:
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self._device))

    def _look(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._over.wait(INTERVAL):
                return


def latency(
    task: Task[Any, Any], model: nn.Module, inputs: Sequence[Any], *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds for one answer to one input, as a server gives it, the first round of answers left out.

    Args:
        task: prepared.
        model: built by the task.
        inputs: asked one by one, again and again; at least one.
        clock: tells seconds.
    """
    # What is computed of frozen weights is kept, as in a model that was loaded.
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    for given in inputs:
        task.predict(frozen, [given])
    begun = clock()
    times: list[float] = []
    while len(times) < ANSWERS and (not times or clock() - begun < ENOUGH):
        before = clock()
        task.predict(frozen, [inputs[len(times) % len(inputs)]])
        times.append(clock() - before)
    return statistics.median(times)


def told(costs: Mapping[str, float]) -> dict[str, str]:
    """What a person reads of ``latency_ms`` and ``peak_memory_bytes``: what it is -> the figure with its unit."""
    return {
        "one answer to one input, median": f"{costs['latency_ms']:.1f} ms",
        "memory at most in training": f"{costs['peak_memory_bytes'] / 1e6:,.0f} MB",
    }

"""Where a model computes: one thread of its own, so that the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from seqapp.bundle import Bundle

THREAD_PREFIX = "seqapp-model"


@dataclass(frozen=True)
class Answer:
    """What a model said, and how long that took, in seconds."""

    outputs: list[Any]
    queued: float
    computed: float


class Engine:
    """Asks one bundle, one request after the other.

    Args:
        bundle: the loaded bundle.
        threads: how many threads one forward pass may use.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._bundle = bundle
        self._executor = ThreadPoolExecutor(1, THREAD_PREFIX, torch.set_num_threads, (threads,))

    async def predict(self, inputs: Sequence[Any]) -> Answer:
        """Answer ``inputs``, each a ``task.Input``. A caller that goes away loses its turn if it has not begun.

        Raises:
            InputError: for an input that cannot be answered.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, inputs, perf_counter())

    def close(self) -> None:
        """Take no more requests and drop those that wait; the one being answered is not stopped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _answer(self, inputs: Sequence[Any], asked: float) -> Answer:
        began = perf_counter()
        outputs = self._bundle.predict(inputs)
        return Answer(outputs, began - asked, perf_counter() - began)

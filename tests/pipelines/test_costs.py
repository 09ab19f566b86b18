"""What a model costs: the memory of its training and the time of its answers."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from pipelines import run
from pipelines.costs import ANSWERS, PeakMemory, latency
from seqapp.data.pairs import SentencePair
from seqapp.data.text import Passage
from seqapp.errors import SeqappError
from seqapp.tasks import TASKS
from tests.pipelines.worlds import Done, World


class Answering:
    """A task whose answers take as long as it is told, by a clock of its own."""

    def __init__(self, durations: list[float]) -> None:
        self.durations, self.now, self.asked = iter(durations), 0.0, [0]
        self.models: list[nn.Module] = []

    def clock(self) -> float:
        return self.now

    def predict(self, model: nn.Module, inputs: list[int]) -> list[int]:
        self.models.append(model)
        self.asked += inputs
        self.now += next(self.durations)
        return inputs


def test_latency_is_the_median_of_single_answers_after_the_first_round() -> None:
    task: Any = Answering([9.0, 9.0, 0.3, 0.1, 0.5, 0.2, 1.9, 7.0])
    model = nn.Linear(1, 1)
    assert latency(task, model, [1, 2], clock=task.clock) == pytest.approx(0.3)
    assert task.asked == [0, 1, 2, 1, 2, 1, 2, 1]  # one by one, until two seconds have passed
    assert model.weight.requires_grad
    assert model.training
    assert not any(asked.training or asked.weight.requires_grad for asked in task.models)


def test_latency_asks_no_more_than_it_must() -> None:
    task: Any = Answering([0.0] * (ANSWERS + 1))
    latency(task, nn.Linear(1, 1), [5], clock=task.clock)
    assert len(task.asked) == 1 + 1 + ANSWERS


def test_peak_memory_sees_what_is_gone_again() -> None:
    watch, module = PeakMemory(), SimpleNamespace(device=torch.device("cpu"))
    trainer: Any = None
    watch.on_fit_start(trainer, module)  # type: ignore[arg-type]
    before = watch.bytes
    for _ in count():  # until the thread has looked
        if watch.bytes:
            before = watch.bytes
            break
    held = bytearray(64 * 2**20)
    held[:: 2**10] = b"1" * 2**16
    for _ in count():
        if watch.bytes >= before + 48 * 2**20:
            break
    del held
    watch.on_fit_end(trainer, module)  # type: ignore[arg-type]
    assert watch._thread is None
    assert watch.bytes >= before + 48 * 2**20


def test_peak_memory_stops_looking_when_training_fails() -> None:
    watch, module = PeakMemory(), SimpleNamespace(device=torch.device("cpu"))
    trainer: Any = None
    watch.on_fit_start(trainer, module)  # type: ignore[arg-type]
    watch.on_exception(trainer, module, KeyboardInterrupt())  # type: ignore[arg-type]
    assert watch._thread is None


def test_peak_memory_of_a_resumed_training_is_the_most_of_all_its_parts(
    toy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise SeqappError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=10**15))
        patch.setattr(run, "publish", stop)
        with pytest.raises(SeqappError, match="stopped"):
            toy.train(config="toy.yaml")
    trained = toy.train(config="toy.yaml", resume=True)
    assert toy.client.get_run(trained.run_id).data.metrics["peak_memory_bytes"] == 10**15


def test_peak_memory_of_an_accelerator_is_in_each_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([30, 50, 40])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(held))
    watch, module = PeakMemory(), SimpleNamespace(device=torch.device("cuda", 0))
    trainer: Any = None
    watch.on_fit_start(trainer, module)  # type: ignore[arg-type]
    assert watch.state_dict() == {"bytes": 30}
    kept = watch.state_dict()
    resumed = PeakMemory()
    resumed.load_state_dict(kept)
    resumed.on_fit_start(trainer, module)  # type: ignore[arg-type]
    resumed.on_fit_end(trainer, module)  # type: ignore[arg-type]
    assert resumed.bytes == 50


def test_a_run_tells_what_its_model_costs(done: Done) -> None:
    values = done.client.get_run(done.trained.run_id).data.metrics
    files = [file for file in Path(done.trained.bundle).iterdir() if file.is_file()]
    assert values["bundle_bytes"] == sum(file.stat().st_size for file in files)
    assert 0 < values["latency_ms"] < 60_000
    assert values["peak_memory_bytes"] > 50 * 2**20  # an interpreter with torch


def test_what_is_asked_for_measuring_is_what_a_person_asks() -> None:
    generation = TASKS.build({"kind": "generation"})
    request: Any = generation.as_request(Passage("a text " * 100))
    assert (request.max_tokens, request.min_tokens, request.echo, request.temperature) == (64, 64, False, 0.0)
    translation = TASKS.build({"kind": "translation"})
    asked: Any = translation.as_request(SentencePair("a", "b"))
    assert asked.target is None

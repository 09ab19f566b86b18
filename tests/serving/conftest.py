"""A prepared task with an untrained model: serving must not care how good it is."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from seqapp import bundle
from seqapp.completion import GenerationInput
from seqapp.data.splits import LabelledText
from seqapp.data.text import Passage
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation
from seqapp.tasks.sentiment import Sentiment, SentimentInput
from serving import protocol
from serving.app import create_app
from serving.models import go_live
from serving.settings import Settings
from tests.serving.scripted import MakeApp, Scripted

CARD = "# tiny\n\nKnows four words. ✓\n"
EXAMPLES = [
    LabelledText("a lovely garden", "positive"),
    LabelledText("good soup", "positive"),
    LabelledText("a bad room", "negative"),
    LabelledText("it broke", "negative"),
]
TASK = {"kind": "sentiment", "tokenizer": {"kind": "word"}, "max_tokens": None, "crop": None}
MODEL = {"kind": "classifier", "embedding_size": 8, "encoder": {"kind": "lstm", "hidden_size": 8}}
TEXTS = ("the café is open 😀\n", "the garden is lovely\n", "a bad room, a good soup\n")
WRITER = {"kind": "language_model", "embedding_size": 8, "encoder": {"kind": "lstm", "hidden_size": 8}}

MakeBundle = Callable[..., Path]


def write_bundle(path: Path, *, seed: int = 0, accuracy: float = 0.75) -> Path:
    task = Sentiment()
    task.prepare(EXAMPLES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.build_model(MODEL)
    scores = {"validation": {"accuracy": accuracy, "nll": 0.6}, "test": {"accuracy": accuracy - 0.01}}
    return bundle.save(
        path,
        task=task,
        model=model,
        resolved={"task": TASK, "model": MODEL},
        metrics={"scores": scores},
        name="tiny",
        golden=[SentimentInput(text="good soup"), SentimentInput(text="a bad room", explain=True)],
        card=CARD,
    )


def write_writer(path: Path, conditions: Sequence[Any] = (None,), *, seed: int = 0) -> Path:
    """A language model of characters that has learned nothing; its texts depend on ``conditions``."""
    task = Generation(reads="rows")
    task.prepare([Passage(text, condition=conditions[i % len(conditions)]) for i, text in enumerate(TEXTS)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = task.build_model(WRITER).eval()
    first = list(conditions[0]) if isinstance(conditions[0], tuple) else conditions[0]
    return bundle.save(
        path,
        task=task,
        model=model,
        resolved={"task": TASKS.check({"kind": "generation", "reads": "rows"}), "model": WRITER},
        metrics={"scores": {"validation": {"bits_per_character": 2.5}}},
        name=path.name,
        golden=[GenerationInput(prompt="the ", temperature=0, max_tokens=8, condition=first)],
    )


@contextmanager
def answering(app: FastAPI, settings: Settings) -> Iterator[int]:
    """A real server on a thread, as `python -m serving` starts it; gives its port."""
    config = uvicorn.Config(app, **protocol.options(settings, app.state.metrics))
    app.state.server = server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                sleep(0.005)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


Answering = Callable[..., AbstractContextManager[int]]


@pytest.fixture(scope="session")
def serve() -> Answering:
    return answering


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    return lambda name="tiny", **options: write_bundle(tmp_path / name, **options)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "other", seed=1)


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Bundles of a model without a condition, one with classes and one with features."""
    folder = tmp_path_factory.mktemp("writers")
    conditions: dict[str, Any] = {"writer": [None], "names": ["Greek", "Welsh"], "shapes": [(1.0, 0.5)]}
    return [str(write_writer(folder / name, known)) for name, known in conditions.items()]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, writers: list[str]) -> Iterator[MakeApp]:
    """A running batch in the place of that of a language model, and what makes an application around it."""
    running = Scripted(held=True)
    monkeypatch.setattr(Generation, "running", lambda task, model: running)
    monkeypatch.setattr(Generation, "written", lambda task, said: 0)
    opened = []

    def app(**limits: Any) -> Any:
        own = {name: limits.pop(name) for name in ("limits",) if name in limits}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("serving.models._warm_up", lambda *_: asyncio.sleep(0))
            opened.append(go_live(writers[:1], threads=1, **own))
        assert not opened[-1].refused
        return create_app(Settings(**limits), opened[-1])

    yield running, app
    running.gate.set()
    for models in opened:
        models.close()


@pytest.fixture(scope="session")
def settings() -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(f"SEQAPP_{name.upper()}", raising=False)
        return Settings(max_items=4, max_characters=60_000, max_bytes=100_000)


@pytest.fixture(scope="session")
def client(settings: Settings, tiny: Path, other: Path) -> Iterator[TestClient]:
    app = create_app(settings, go_live([str(tiny), str(other)], threads=1))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def card() -> str:
    return CARD

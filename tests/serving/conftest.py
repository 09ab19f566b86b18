"""A prepared task with an untrained model: serving must not care how good it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from seqapp import bundle
from seqapp.data.splits import LabelledText
from seqapp.tasks.sentiment import Sentiment, SentimentInput
from serving.app import create_app
from serving.models import go_live
from serving.settings import Settings

CARD = "# tiny\n\nKnows four words. ✓\n"
EXAMPLES = [
    LabelledText("a lovely garden", "positive"),
    LabelledText("good soup", "positive"),
    LabelledText("a bad room", "negative"),
    LabelledText("it broke", "negative"),
]
TASK = {"kind": "sentiment", "tokenizer": {"kind": "word"}, "max_tokens": None, "crop": None}
MODEL = {"kind": "classifier", "embedding_size": 8, "encoder": {"kind": "lstm", "hidden_size": 8}}

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

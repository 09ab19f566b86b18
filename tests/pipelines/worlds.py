"""A tiny data set, a tiny network, and an MLflow store in a folder of its own; one trained run that tests only read."""

import csv
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import mlflow

from pipelines import run
from pipelines.run import Trained

CONFIG = """
task:
  kind: sentiment
  tokenizer: {kind: word, max_vocabulary: 60}
model:
  kind: classifier
  embedding_size: 8
  encoder: {kind: lstm, hidden_size: 8}
  dropout: 0.2
data: {kind: table, train: data.csv, validation_share: 0.2, test_share: 0.1}
train: {epochs: 3, batch_tokens: 128, batch_rows: 16, learning_rate: 2e-2}
"""

CUES = {
    "negative": ("bad", "awful", "poor"),
    "positive": ("good", "great", "fine"),
    "mixed": ("so-so", "middling", "passable"),
}
FILLERS = ("the", "a", "this", "film", "meal", "phone", "was", "is", "quite")


def texts(
    count: int, labels: Sequence[str] = ("negative", "positive"), seed: int = 0, longest: int = 10
) -> list[tuple[str, str]]:
    """Different texts and their labels; one word of each gives the label away."""
    chance = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = labels[len(found) % len(labels)]
        words = [chance.choice(FILLERS) for _ in range(chance.randint(3, longest))]
        words.insert(chance.randrange(len(words) + 1), chance.choice(CUES[label]))
        found.setdefault(" ".join(words), label)
    return list(found.items())


def write_csv(path: Path, rows: Sequence[tuple[str, str]], header: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


@dataclass(frozen=True)
class World:
    """A folder with data.csv, tiny.yaml and an MLflow store."""

    path: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def client(self) -> Any:
        return mlflow.MlflowClient(self.uri, self.uri)

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", self.uri)
        monkeypatch.chdir(self.path)
        # MLflow remembers the last store it was told of, and prefers it to the environment.
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)

    def config(self, name: str = "tiny.yaml", text: str = CONFIG) -> Path:
        (self.path / name).write_text(text, encoding="utf-8")
        return self.path / name

    def train(self, *overrides: str, config: str = "tiny.yaml", **options: Any) -> Trained:
        return run.train(config, overrides, **{"progress": False, **options})

    def history(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Every value that MLflow holds of a run, repeated steps included."""
        client = self.client
        names = client.get_run(run_id).data.metrics
        return {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)] for name in names}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines", *arguments]

    def environment(self) -> Mapping[str, str]:
        root = str(Path(__file__).parents[2])
        # As in an activated environment: MLflow looks for uvicorn on the path.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": self.uri, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


SIZED = ("peak_memory_bytes", "bundle_bytes")


def steady(history: Mapping[str, Any]) -> dict[str, Any]:
    """A run's metrics without those that measure time, memory and files, which name the run."""
    timed = ("train/seconds", "train/tokens_per_second", "seconds", "latency_ms")
    kept = [name for name in history if name not in (*timed, *SIZED) and not name.startswith("system/")]
    return {name: history[name] for name in kept}


@dataclass(frozen=True)
class Done(World):
    """A world in which one run was trained, inside a git checkout with one commit."""

    trained: Trained
    commit: str


def git(path: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *identity, *arguments], cwd=path, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    status: int
    out: str
    err: str

"""Folders to train in; see worlds.py."""

import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from sqlalchemy import Engine, event

from seqapp.data.splits import SOURCES
from seqapp.models.registry import MODELS
from seqapp.tasks import TASKS
from tests.pipelines import toys
from tests.pipelines.worlds import Done, Said, World, git, texts, write_csv

FOREIGN = (
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
    "ignore:Operation with range is deprecated",
)
"""Warnings of MLflow about itself, which nothing here can mend."""


def pytest_configure(config: pytest.Config) -> None:
    for line in FOREIGN:
        config.addinivalue_line("filterwarnings", line)


@event.listens_for(Engine, "connect")
def _no_fsync(connection: Any, _: Any) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def make_world(template: Path) -> Callable[[Path], World]:
    def make(path: Path) -> World:
        shutil.copy(template, path / "mlflow.db")
        world = World(path)
        write_csv(path / "data.csv", texts(160))
        world.config()
        return world

    return make


@pytest.fixture
def world(make_world: Callable[[Path], World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fresh one, and the current directory."""
    made = make_world(tmp_path)
    made.enter(monkeypatch)
    return made


@pytest.fixture
def toy(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fresh world whose registries hold the toy task too, with its config toy.yaml."""
    for registry, kind in ((TASKS, "tasks"), (MODELS, "models"), (SOURCES, "sources")):
        monkeypatch.setitem(registry.own, "toy", toys.KINDS[kind])
    world.config("toy.yaml", toys.CONFIG)
    return world


@pytest.fixture(scope="session")
def _done(make_world: Callable[[Path], World], tmp_path_factory: pytest.TempPathFactory) -> Done:
    made = make_world(tmp_path_factory.mktemp("done"))
    git(made.path, "init", "--quiet")
    git(made.path, "add", "tiny.yaml")
    git(made.path, "commit", "--quiet", "--message", "config")
    with pytest.MonkeyPatch.context() as patch:
        made.enter(patch)
        trained = made.train("train.seed=3", "train.epochs=4")
    return Done(made.path, trained, git(made.path, "rev-parse", "HEAD").strip())


@pytest.fixture
def done(_done: Done, monkeypatch: pytest.MonkeyPatch) -> Done:
    """The trained run that tests read and leave as it is; its folder is the current directory."""
    _done.enter(monkeypatch)
    return _done


@pytest.fixture
def seqapp(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The console command, in this process."""
    from pipelines import __main__ as command_line

    def call(*arguments: str | Path, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "argv", ["seqapp", *map(str, arguments)])
        capfd.readouterr()
        kept = os.dup(0)
        reading, writing = os.pipe()
        os.write(writing, stdin)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)
        root = logging.getLogger()
        handler, level = logging.StreamHandler(sys.stderr), root.level
        handler.setLevel(logging.WARNING)
        root.addHandler(handler)
        try:
            command_line.main()
            status: Any = 0
        except SystemExit as exit:
            status = 0 if exit.code is None else exit.code
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            os.dup2(kept, 0)
            os.close(kept)
        said = capfd.readouterr()
        return Said(int(status), said.out, said.err)

    return call

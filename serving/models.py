"""Which bundles are live: references become loaded, checked models, or a reason why not."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from seqapp import bundle
from seqapp.bundle import Bundle
from seqapp.errors import SeqappError
from seqapp.references import BUNDLE, Reference, champions, resolve
from seqapp.registry import suggest
from serving.engine import Engine

log = logging.getLogger(__name__)


class UnknownModel(SeqappError):
    """No live model has this name, or none does this task."""


@dataclass(frozen=True)
class LiveModel:
    """A model that answers."""

    id: str
    reference: Reference
    bundle: Bundle
    engine: Engine
    card: str
    loaded_at: datetime

    @property
    def task(self) -> str:
        return self.bundle.manifest.task

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Figures per split, such as ``{"test": {"accuracy": 0.81}}``; what is no finite number is left out."""
        found = self.bundle.metrics.get("scores") if isinstance(self.bundle.metrics, dict) else None
        return {
            split: {name: float(value) for name, value in figures.items() if _is_figure(value)}
            for split, figures in (found if isinstance(found, dict) else {}).items()
            if isinstance(figures, dict)
        }


@dataclass(frozen=True)
class Refusal:
    """A model that does not go live."""

    reference: str
    reason: str


class Models:
    """The live models, in order of preference: the first of a task answers when a request names none.

    Args:
        live: models with distinct ids.
        refused: what was asked for and did not go live.
    """

    def __init__(self, live: Sequence[LiveModel], refused: Sequence[Refusal] = ()) -> None:
        self._live = {model.id: model for model in live}
        self.refused = list(refused)

    def __iter__(self) -> Iterator[LiveModel]:
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    def get(self, name: str) -> LiveModel:
        """The model called ``name``.

        Raises:
            UnknownModel: saying which there are.
        """
        if name not in self._live:
            raise UnknownModel(f"no model is called {name[:80]!r}; {suggest(name[:80], list(self._live))}")
        return self._live[name]

    def find(self, task: str, name: str | None = None) -> LiveModel:
        """The model called ``name``, or the first one of ``task``.

        Raises:
            UnknownModel: if there is none, or it does another task.
        """
        fitting = [model for model in self if model.task == task]
        if name is None:
            if not fitting:
                raise UnknownModel(f"no {task} model is live")
            return fitting[0]
        model = self.get(name)
        if model.task != task:
            known = ", ".join(other.id for other in fitting) or "none"
            raise UnknownModel(f"{name!r} is a {model.task} model; {task} models: {known}")
        return model

    def close(self) -> None:
        """Stop every engine."""
        for model in self:
            model.engine.close()


def go_live(references: Sequence[str] = (), threads: int | None = None, tasks: Collection[str] | None = None) -> Models:
    """Load the bundles that ``references`` name and ask each its golden questions; one that fails is refused.

    Args:
        references: bundle directories, ``name@alias``, ``name/version`` or run ids; none stands for every champion.
        threads: of one forward pass; by default the cores are shared out evenly.
        tasks: those that a route answers; a model of another is refused. None takes every task.

    Raises:
        ReferenceNotFound: if no reference is given and the registry has no champion.
    """
    wanted = [*references] or champions()
    threads = threads or max(1, torch.get_num_threads() // len(wanted))
    live: list[LiveModel] = []
    refused: list[Refusal] = []
    for reference in wanted:
        try:
            live.append(_open(reference, {model.id for model in live}, threads, tasks))
        except SeqappError as error:
            refused.append(Refusal(reference, str(error)))
        except (
            Exception
        ) as error:  # a damaged bundle may fail in a way nobody thought of; the others must still go live
            log.debug("%s", reference, exc_info=True)
            refused.append(Refusal(reference, f"{type(error).__name__}: {error}"))
    return Models(live, refused)


def _open(reference: str, taken: set[str], threads: int, tasks: Collection[str] | None) -> LiveModel:
    found = resolve(reference)
    name = _free_name(found, taken)
    loaded = bundle.load(found.path)
    task = loaded.manifest.task
    if tasks is not None and task not in tasks:
        raise SeqappError(f"no HTTP route answers the task {task!r}, only {', '.join(sorted(tasks))}; "
                          "`seqapp predict` does")  # fmt: skip
    loaded.check_golden()
    readme = found.path / "README.md"
    card = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    return LiveModel(name, found, loaded, Engine(loaded, threads), card, datetime.now(UTC))


def _free_name(found: Reference, taken: set[str]) -> str:
    # A run keeps its bundle in a folder of this name, which tells nothing; the folder above is the run.
    name = found.path.resolve().parent.name if found.name == BUNDLE and not found.version else found.name
    # Two versions of one registered model may be live side by side.
    full = f"{name}@{found.alias}" if found.alias else f"{name}@v{found.version}" if found.version else name
    free = next((candidate for candidate in (name, full) if candidate not in taken), None)
    if free is None:
        raise SeqappError(f"a model called {full!r} is live already; rename one of the two directories")
    return free


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

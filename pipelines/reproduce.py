"""Train again from what a run has logged, and say whether the figures match."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from rich.markup import escape
from rich.table import Table

from pipelines import run, tracking
from pipelines.baselines import BASELINES
from pipelines.options import SECTIONS
from pipelines.promotion import find_run
from seqapp import config
from seqapp.errors import ConfigError, SeqappError
from seqapp.references import connect, masked, reason

WEIGHTY = ("torch", "numpy", "tokenizers", "pytorch-lightning", "scikit-learn", "scipy")
"""Packages whose version may move a figure."""
FACTS = ("python", "processor", "gpu", "threads")
"""What the first lines of environment.txt tell of a machine that may move one."""
TOLERANCE = 1e-3
"""Figures this share of their size apart count as equal, unless another share is asked for."""
REPORT = "reproduction.md"
"""Artifact of the new run."""


@dataclass(frozen=True)
class Original:
    """What a finished run has logged.

    Args:
        run_id: of the run.
        name: of the run.
        config: resolved; of a baseline its task and data.
        baseline: which simple method it is; empty for a network.
        digests: split -> the beginning of its SHA-256.
        metrics: the last value of each.
        tags: of the run.
        environment: package -> version, and the facts of the machine.
    """

    run_id: str
    name: str
    config: dict[str, Any]
    baseline: str
    digests: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Figure:
    """A figure then and now; None where it was not measured."""

    name: str
    old: float | None
    new: float | None

    @property
    def equal(self) -> bool:
        """To the last digit; nan equals nan."""
        if self.old is None or self.new is None:
            return False
        return self.old == self.new or (math.isnan(self.old) and math.isnan(self.new))

    @property
    def difference(self) -> float | None:
        """New minus old."""
        if self.old is None or self.new is None:
            return None
        return 0.0 if self.equal else self.new - self.old

    def within(self, tolerance: float) -> bool:
        """Whether the two differ by no more than this share of the larger."""
        if self.old is None or self.new is None:
            return False
        return self.equal or math.isclose(self.old, self.new, rel_tol=tolerance)


@dataclass(frozen=True)
class Reproduction:
    """How a run compares with the one it repeats."""

    run_id: str
    original: Original
    differences: list[str]
    figures: list[Figure]
    tolerance: float

    @property
    def matches(self) -> bool:
        """Whether every figure is equal within the tolerance."""
        return all(figure.within(self.tolerance) for figure in self.figures)

    def __str__(self) -> str:
        count = f"{len(self.figures)} figures"
        if all(figure.equal for figure in self.figures):
            return f"reproduced: all {count} are equal to the last digit"
        far = [figure for figure in self.figures if not figure.within(self.tolerance)]
        if not far:
            return f"reproduced: all {count} are equal within {self.tolerance:g} of their size"
        return f"not reproduced: {len(far)} of {count} differ by more than {self.tolerance:g} of their size"


def read(reference: str) -> Original:
    """What the run has logged that is needed to repeat it.

    Args:
        reference: id of a run, or the beginning of one.

    Raises:
        SeqappError: if there is no such run, it did not finish, or it is no training of seqapp.
    """
    client = connect(create=False)
    found = find_run(client, reference)
    run_id, tags = found.info.run_id, dict(found.data.tags)
    who = f"run {run_id} ({found.info.run_name})"
    if found.info.status != "FINISHED":
        was = {"RUNNING": "is still running", "KILLED": "was stopped", "FAILED": "has failed"}
        raise SeqappError(f"{who} {was.get(found.info.status, 'has not begun')}, so there are no figures to match; "
                          "a finished run fits")  # fmt: skip
    try:
        files = {entry.path for entry in client.list_artifacts(run_id)}
    except (MlflowException, OSError) as error:
        raise SeqappError(f"{who}: its artifacts cannot be read: {masked(reason(error))}") from None
    if not files and "network" in tags:
        raise SeqappError(f"{who}: its artifacts cannot be read: there is none where MLflow keeps them, so its config "
                          "is lost")  # fmt: skip
    if (
        f"best_validation/{tags.get('metric')}" not in found.data.metrics
        or "config.yaml" not in files
        or "network" not in tags
    ):
        raise SeqappError(f"{who} is no training of seqapp: it has no config.yaml or no validation score; what `seqapp "
                          "train` or `seqapp baseline` made fits")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        texts = {name: Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
                 for name in ("config.yaml", "environment.txt") if name in files}  # fmt: skip
    baseline = ""
    tree = config.parse(texts["config.yaml"], f"{who}: config.yaml")
    sections = dict(SECTIONS)
    if tags.get("network", "").startswith("none ("):
        baseline = tags.get("baseline", found.info.run_name)
        sections = {name: SECTIONS[name] for name in ("task", "data")}
        tree.pop("strength", None)
        if baseline not in BASELINES:
            raise SeqappError(f"{who}: there is no baseline {baseline!r}; known: {', '.join(BASELINES)}")
    resolved = config.check(tree, sections=sections, source=f"{who}: config.yaml")
    inputs = found.inputs.dataset_inputs if found.inputs else []
    digests = {tag.value: given.dataset.digest for given in inputs for tag in given.tags
               if tag.key == MLFLOW_DATASET_CONTEXT}  # fmt: skip
    return Original(run_id, found.info.run_name, resolved, baseline, digests, dict(found.data.metrics), tags,
                    environment(texts.get("environment.txt", "")))  # fmt: skip


def environment(text: str) -> dict[str, str]:
    """Package -> version, and fact -> value, of what :func:`pipelines.tracking.environment` wrote."""
    found = {}
    for line in text.splitlines():
        for mark in ("# ", ""):
            name, separator, value = line.removeprefix(mark).partition(": " if mark else "==")
            if line.startswith(mark) and separator:
                found[name] = value
                break
    return found


def differences(original: Original) -> list[str]:
    """What is not here as it was there, and may move a figure; a sentence each."""
    told = []
    here = tracking.source_tags()
    then, now = original.tags.get("git_commit", ""), here.get("git_commit", "")
    if not then and not now:
        told.append("code: neither then nor here is a git commit known")
    elif then != now:
        told.append(f"code: commit {then[:12] or 'unknown'} then, {now[:12] or 'unknown'} here"
                    + (f"; `git checkout {then[:12]}` gives it back" if then and now else ""))  # fmt: skip
    for when, tags in (("then", original.tags), ("here", here)):
        if tags.get("git_dirty") == "true":
            told.append(f"code: uncommitted changes {when}, which the commit does not hold")
    current = environment(tracking.environment())
    for name in (*WEIGHTY, *FACTS):
        old, new = original.environment.get(name, "unknown"), current.get(name, "none")
        if old != new and not (name == "threads" and _threads(original)):
            told.append(f"{name}: {old} then, {new} here")
    if (processes := _processes(original)) > 1:
        told.append(f"processes: {processes} then, 1 here, which moves figures by rounding, and by what is drawn in a "
                    "step, such as dropout")  # fmt: skip
    return told


def reproduce(
    original: Original,
    *,
    resume: bool = False,
    progress: bool = True,
    runs: Path = run.RUNS,
    tolerance: float = TOLERANCE,
) -> Reproduction:
    """Train again, with as many threads as then where the machine has so many cores, and compare.

    What several processes have learned is learned by one: they change nothing but rounding and what is drawn in a step.
    The new run stands below the old one in MLflow, is tagged ``reproduces``, carries the report as an artifact, and is
    not registered.

    Args:
        original: what :func:`read` found.
        resume: go on with a reproduction of this run that was stopped.
        progress: draw progress bars.
        runs: where folders of runs are.
        tolerance: the share of its size by which a figure may differ.

    Raises:
        SeqappError: if the data is not what it was, or the training fails.
    """
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance: a share from 0 to 1 fits, such as 1e-3, not {tolerance:g}")
    differing = differences(original)
    tags = {"reproduces": original.run_id, MLFLOW_PARENT_RUN_ID: original.run_id}
    name = re.sub(r"[^\w.-]+", "-", original.name) + "-again"  # of a folder, too
    with _as_many_threads(original):
        if original.baseline:
            test = any(key.startswith("test/") for key in original.metrics)
            splits = run.splits_of(original.config, original.digests)
            run_id, _ = run.log_baseline(original.baseline, original.config, splits, test=test, run_name=name,
                                         tags=tags)  # fmt: skip
        else:
            alone = {**original.config, "train": {**original.config["train"], "devices": 1, "nodes": 1}}
            run_id = run.train_resolved(name, alone, resume=resume, register=False, progress=progress,
                                        runs=runs, tags=tags, digests=original.digests).run_id  # fmt: skip
    found = Reproduction(run_id, original, differing, _figures(original, run_id), tolerance)
    client = connect()
    client.log_text(run_id, report(found), REPORT)
    client.set_tag(run_id, "reproduction", str(found))
    note = client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    client.set_tag(run_id, MLFLOW_RUN_NOTE, f"Repeats {original.name}, {found}; see `{REPORT}`.\n\n{note}")
    return found


def table(found: Reproduction) -> Table:
    """For a terminal: every figure, old and new."""
    drawn = Table()
    for column in ("figure", "then", "now", "difference"):
        drawn.add_column(column, justify="left" if column == "figure" else "right")
    for figure in found.figures:
        drawn.add_row(escape(figure.name), *_cells(figure), style="" if figure.within(found.tolerance) else "bold")
    return drawn


def report(found: Reproduction) -> str:
    """Markdown."""
    rows = "\n".join(f"| {' | '.join([figure.name, *_cells(figure)])} |" for figure in found.figures)
    apart = "\n".join(f"- {line}" for line in found.differences) or "- nothing that may move a figure"
    return f"""# {found.original.name}, repeated

Run `{found.original.run_id}`, repeated as run `{found.run_id}`: **{found}.**

## What differed

{apart}

## Figures

| figure | then | now | difference |
|---|---|---|---|
{rows}
"""


def _cells(figure: Figure) -> tuple[str, str, str]:
    old, new = ("–" if value is None else repr(value) for value in (figure.old, figure.new))
    difference = figure.difference
    return old, new, "0" if figure.equal else "–" if difference is None else f"{difference:+.2e}"


def _figures(original: Original, run_id: str) -> list[Figure]:
    """Every score of the old run, in the new one too; of a curve the epoch in which the two differ most."""
    client = connect()
    new = client.get_run(run_id).data.metrics
    parts = {"best_validation", "calibration", *original.digests} - {"train", "validation"}
    finals = [name for name in sorted(original.metrics)
              if name.partition("/")[0] in parts and not name.endswith("/examples")]  # fmt: skip
    figures = [Figure(name, original.metrics[name], new.get(name)) for name in finals]
    for name in sorted(original.metrics):
        if name.startswith("validation/") and not name.endswith("/examples"):
            curves = [{point.step: point.value for point in client.get_metric_history(one, name)}
                      for one in (original.run_id, run_id)]  # fmt: skip
            figures.append(_worst(name, *curves))
    return figures


def _worst(name: str, old: Mapping[int, float], new: Mapping[int, float]) -> Figure:
    """The epoch, counted from 1, in which two curves differ most; of equal ones the last."""
    epochs = [Figure(f"{name}, epoch {step + 1} of {len(old)}", old.get(step), new.get(step))
              for step in sorted({*old, *new})]  # fmt: skip

    def apart(figure: Figure) -> float:
        if figure.equal:
            return 0.0
        return math.inf if figure.difference is None or math.isnan(figure.difference) else abs(figure.difference)

    return max(reversed(epochs), key=apart)


def _processes(original: Original) -> int:
    """How many trained as one."""
    train = original.config.get("train", {})  # a baseline has none
    return int(train.get("devices", 1) * train.get("nodes", 1))


def _threads(original: Original) -> int | None:
    """How many threads there were then, if there can be as many here."""
    told = original.environment.get("threads", "")
    return int(told) if told.isdigit() and 0 < int(told) <= (os.cpu_count() or 1) else None


@contextmanager
def _as_many_threads(original: Original) -> Iterator[None]:
    # Sums of float32 depend on how they are shared out.
    before, wanted = torch.get_num_threads(), _threads(original)
    if wanted:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The folder of a run: its checkpoints, its bundle, and the state that lets it go on after a stop."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import patience, tracking
from pipelines.card import network_of
from pipelines.locks import is_held
from seqapp.errors import SeqappError
from seqapp.tasks import Task

log = logging.getLogger(__name__)

STATE = "state.json"
KEYS = {"run_id", "name", "finished", "digests", "config"}
"""Of that file."""


class Busy(SeqappError):
    """Another process works on a run."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory}: another process is training this run at this moment; without --resume a new "
                         "one begins")  # fmt: skip
        self.directory = directory


def open_run(
    name: str,
    task: Task[Any, Any],
    resolved: Mapping[str, Any],
    digests: Mapping[str, str],
    data_name: str,
    *,
    sizes: Mapping[str, int],
    resume: bool,
    runs: Path,
    tags: Mapping[str, str],
) -> tuple[Path, str]:
    """The folder and the id of a new run, or of the last unfinished one of this very config.

    Args:
        name: of the run, such as "bundled-lstm".
        task: prepared.
        resolved: the config.
        digests: split -> SHA-256.
        data_name: the data set.
        sizes: split -> number of examples.
        resume: go on with the last unfinished run.
        runs: where folders of runs are.
        tags: further ones of a new run.

    Raises:
        SeqappError: if there is nothing to go on with, or the data have changed.
    """
    experiment = resolved["task"]["kind"]
    if resume:
        directory = last_unfinished(runs, name, resolved)
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
        if state["digests"] != digests:
            raise SeqappError(f"{name}: the data is not what it was when the run in {directory} began; "
                              "train without --resume")  # fmt: skip
        tracking.reopen_run(state["run_id"])
        # Where it ends is where an answer is timed.
        patience.client().set_tag(state["run_id"], "machine", tracking.machine_line())
        log.info("going on with run %s in %s", state["run_id"], directory)
        return directory, state["run_id"]
    about = {
        "task": experiment,
        "network": network_of(resolved["model"]),
        "metric": task.selection[0],
        "direction": task.selection[1],
        "metric_definition": task.metric_definition,
        "dataset": data_name,
        "validation_digest": digests["validation"],
        "test_digest": digests["test"],
        "seed": str(resolved["train"]["seed"]),
        "machine": tracking.machine_line(),
        "command": tracking.command(),
        **tracking.source_tags(),
        **tags,
    }
    run_id = tracking.create_run(experiment, name, about)
    tracking.log_start(run_id, resolved, digests, data_name, sizes)
    directory = runs / f"{experiment}-{name}-{run_id[:8]}"
    directory.mkdir(parents=True, exist_ok=True)
    write_state(directory, run_id, resolved, digests, finished=False)
    return directory, run_id


def last_unfinished(runs: Path, name: str, resolved: Mapping[str, Any]) -> Path:
    """The folder of the newest unfinished run of this name and config that no process works on at this moment.

    Raises:
        Busy: if there are such runs, but processes work on all of them.
        SeqappError: if there is none.
    """
    states = {}
    for path in sorted(runs.glob(f"*/{STATE}")):
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = None
        if isinstance(state, dict) and state.keys() >= KEYS:
            states[path.parent] = state
        else:
            log.warning("%s: damaged or not made by seqapp, so nothing in that folder can be resumed", path)
    fitting = [directory for directory, state in states.items() if state["name"] == name and not state["finished"]]
    same = [directory for directory in fitting if states[directory]["config"] == resolved]
    if free := [directory for directory in same if not is_held(directory)]:
        return max(free, key=lambda directory: (directory / STATE).stat().st_mtime)
    if same:
        raise Busy(same[-1])
    if fitting:
        raise SeqappError(f"{name}: an unfinished run exists in {fitting[-1]}, but of a config with other values; "
                          "give the same key=value choices, or train without --resume")  # fmt: skip
    raise SeqappError(f"{name}: no unfinished run in {runs}/; train without --resume")


def write_state(
    directory: Path, run_id: str, resolved: Mapping[str, Any], digests: Mapping[str, str], *, finished: bool
) -> None:
    """Say on disk what the run in ``directory`` is and whether it is finished."""
    state = {"run_id": run_id, "name": directory.name.rpartition("-")[0].partition("-")[2], "finished": finished,
             "digests": digests, "config": resolved}  # fmt: skip
    # A kill in the middle must leave the old file or the new one, not half of one.
    part = directory / f"{STATE}.part"
    with part.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(state, indent=1))
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(directory / STATE)

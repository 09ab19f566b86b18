"""The trials of a sweep on a Ray cluster: Ray Tune schedules, stops and retries, Optuna's samplers draw.

Every trial is the same training as on one machine and leaves the same run in MLflow, which all machines must reach.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Tune's own tables and log files: MLflow holds all of that.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from pipelines.search import sampler, sampler_of_trial
from pipelines.trials import COMPLETE, ENDED, FAILED, PRUNED, Outcome, Plan, close_trial, run_trial, trials_of
from seqapp.errors import SeqappError, Stopped
from seqapp.references import masked, tracking_uri

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

RETRIES = 2
"""How often a trial whose worker died begins again."""
TUNE = "ray"
"""Folder of Tune's own state inside that of the sweep."""
NUMBER, EPOCH = "number", "epoch"


def check(address: str | None) -> None:
    """Refuse what cannot work before anything starts.

    Raises:
        SeqappError: if the address is one of Ray's client, or the workers could not reach MLflow.
    """
    if address is not None and address.startswith("ray://"):
        raise SeqappError(f"--address {address}: Ray's client is not supported; run the command on a machine of the "
                          "cluster with --address auto")  # fmt: skip
    if address is not None and tracking_uri().startswith("sqlite:"):
        raise SeqappError(f"--address {address}: the machines of a cluster cannot reach the tracking database "
                          f"{masked(tracking_uri())}; MLFLOW_TRACKING_URI must name a tracking server")  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """What a worker must know of the process that began the sweep."""

    folder: str
    directory: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def search(
    plan: Plan, parent: str, folder: Path, jobs: int, told: Callable[[int], None], *, address: str | None
) -> None:
    """Run all trials that have not ended yet.

    Args:
        plan: the sweep.
        parent: id of its run.
        folder: of the sweep.
        jobs: most trials at once.
        told: called with the number of each trial that has ended.
        address: of the cluster; None starts Ray here.

    Raises:
        Stopped: on Ctrl-C.
        SeqappError: if there is no cluster at ``address``.
    """
    environment = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW_", "SEQAPP_"))}
    place = _Place(str(folder), os.getcwd(), tuple(sys.argv), {**environment, "MLFLOW_TRACKING_URI": tracking_uri()})
    stored = folder.absolute() / TUNE
    with _cluster(address, jobs), _listening(lambda trial, failed: _end(plan, parent, told, trial, failed)) as listener:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(plan.resolved({})["train"]["accelerator"] != "cpu" and "GPU" in resources)
        trainable = tune.with_resources(
            tune.with_parameters(_train, plan=plan, parent=parent, place=place), {"cpu": 1, "gpu": gpus}
        )
        if tune.Tuner.can_restore(str(stored)):
            tuner = tune.Tuner.restore(str(stored), trainable, resume_unfinished=True)
        else:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(_Space(plan), plan.metric, plan.direction,
                                            sampler=sampler(plan.search, plan.axes, plan.source, plan.search.seed)),
                    scheduler=_scheduler(plan), num_samples=plan.trials, max_concurrent_trials=jobs,
                    trial_dirname_creator=str,
                    reuse_actors=True,  # a new one would import for seconds
                ),
                run_config=tune.RunConfig(
                    name=TUNE, storage_path=str(stored.parent), verbose=0, callbacks=[_Ends()],
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                ),
            )  # fmt: skip
        tuner.fit()
    if listener.refused is not None:
        raise listener.refused
    if sum(trial.state in ENDED for trial in trials_of(plan, parent)) < plan.trials:
        raise Stopped("stopped")


class _Space:
    """Draws the values of a trial as on one machine; its number goes with them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        plan = self.plan
        if plan.search.sampler != "grid":  # which has chosen by the number already
            trial.study.sampler = sampler_of_trial(plan.search, plan.axes, plan.source, trial.number)
        for axis in plan.axes:
            axis.suggest(trial)
        return {NUMBER: trial.number}


def _scheduler(plan: Plan) -> TrialScheduler:
    grace = min(plan.search.warmup + 1, plan.epochs)
    given: dict[str, Any] = {"time_attr": EPOCH, "metric": plan.metric, "mode": plan.direction, "grace_period": grace}
    if plan.search.pruner == "median":
        return MedianStoppingRule(**given, min_samples_required=plan.search.startup)
    if plan.search.pruner == "hyperband":
        return AsyncHyperBandScheduler(**given, max_t=plan.epochs, reduction_factor=3)
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def _train(config: dict[str, Any], *, plan: Plan, parent: str, place: _Place) -> None:
    """One trial, on a worker. Raising is how Tune learns that it failed."""
    try:
        os.chdir(place.directory)
    except OSError as error:
        raise SeqappError(f"{place.directory}: {error.strerror}; every machine of the cluster needs the folder of the "
                          "project, on a shared disk") from None  # fmt: skip
    os.environ.update(place.environment)
    sys.argv = list(place.command)
    sampled = {axis.key: config[axis.key] for axis in plan.axes}
    epochs = plan.resolved(plan.values(sampled))["train"]["epochs"]

    def report(epoch: int, score: float) -> bool:
        # The last epoch is told with the final score: nothing is gained by stopping then.
        if epoch + 1 < epochs:
            tune.report({plan.metric: score, EPOCH: epoch + 1})
        return False

    outcome = run_trial(plan, parent, Path(place.folder), config[NUMBER], sampled, report)
    if outcome.state == FAILED:
        raise SeqappError(outcome.problem)
    if outcome.state == COMPLETE:
        tune.report({plan.metric: outcome.score, EPOCH: epochs})


def _end(plan: Plan, parent: str, told: Callable[[int], None], ray_trial: Any, failed: bool) -> None:
    """Write down a trial that its own process could not, since Tune stopped it or it died."""
    number = ray_trial.config[NUMBER]
    found = [trial for trial in trials_of(plan, parent) if trial.number == number]
    if found and found[0].state not in ENDED:
        problem = f"its worker died {RETRIES + 1} times" if failed else "stopped: other trials promise more"
        sampled = {axis.key: ray_trial.config[axis.key] for axis in plan.axes}
        outcome = Outcome(FAILED if failed else PRUNED, problem=problem)
        close_trial(plan, parent, number, sampled, outcome, ray_trial.last_result.get(EPOCH, 0))
    if not found:
        raise SeqappError(f"trial {number} could not begin: {_last_line(ray_trial.get_error())}")
    told(number)


def _last_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["its worker died"])[-1]


class _Listener:
    """Takes what Tune tells of trials; what it raises is kept, since Tune would go on."""

    def __init__(self, end: Callable[[Any, bool], None]) -> None:
        self.end = end
        self.refused: Exception | None = None

    def __call__(self, trial: Any, failed: bool) -> None:
        try:
            self.end(trial, failed)
        except SeqappError as error:
            self.refused = self.refused or error


_listener: _Listener | None = None


class _Ends(tune.Callback):
    """Passes the end of a trial to the process's listener; Tune stores this object, so it has nothing inside."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if _listener is not None:
            _listener(trial, False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if _listener is not None:
            _listener(trial, True)


@contextmanager
def _listening(end: Callable[[Any, bool], None]) -> Iterator[_Listener]:
    global _listener
    _listener = _Listener(end)
    try:
        yield _listener
    finally:
        _listener = None


@contextmanager
def _cluster(address: str | None, jobs: int) -> Iterator[None]:
    """Ray, started here unless there is a cluster, and stopped again unless it was there before."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    given: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": jobs}
    try:
        ray.init(**given, include_dashboard=False if not address else None, log_to_driver=False,
                 logging_level=logging.ERROR)  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SeqappError(f"--address {address}: no Ray cluster there: {str(error).splitlines()[0]}") from None
    # A trial that failed is told in one line; Tune would add its traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()

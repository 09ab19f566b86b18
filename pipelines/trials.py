"""The trials of a sweep: how one is trained, what MLflow holds of all, and the table and pictures of them."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipelines import patience, tracking
from pipelines.figures import figure
from pipelines.folder import STATE as STATE_FILE
from pipelines.folder import last_unfinished
from pipelines.options import SECTIONS
from pipelines.search import Axis, Search, candidate, label, short_names
from seqapp import config
from seqapp.errors import DataError, SeqappError, Stopped
from seqapp.references import ReferenceNotFound

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
ENDED = (COMPLETE, PRUNED, FAILED)
INTERRUPTED = "interrupted"
"""State of a run that a kill left behind, and whose trial another run is."""
PARENT, NUMBER, STATE, EPOCHS, NOTE, VALUE = (
    "mlflow.parentRunId", "trial", "trial_state", "trial_epochs", "trial_note", "sweep.",
)  # fmt: skip
"""Tags of a trial's run; ``sweep.KEY`` holds the value of a key as YAML."""
FEWEST_FOR_IMPORTANCE = 4
"""Complete trials; with fewer, what matters is anybody's guess."""


class Pruned(Stopped):
    """A trial was stopped since others promise more."""


@dataclass(frozen=True)
class Plan:
    """A sweep, checked; made of plain values, so that another process can take a trial of it."""

    stem: str
    source: str
    overrides: tuple[str, ...]
    tree: Mapping[str, Any]
    axes: tuple[Axis, ...]
    search: Search
    experiment: str
    metric: str
    direction: str
    epochs: int
    trials: int
    backend: str

    @property
    def record(self) -> dict[str, Any]:
        """What makes this sweep this one, as JSON."""
        search = {name: getattr(self.search, name) for name in ("sampler", "pruner", "startup", "warmup", "seed")}
        over = {axis.key: str(axis) for axis in self.axes}
        return {**self.tree, "sweep": {**search, "trials": self.trials, "over": over, "backend": self.backend}}

    def values(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """Key -> the value of the config, of what Optuna has sampled."""
        return {axis.key: axis.value_of(sampled[axis.key]) for axis in self.axes}

    def resolved(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a trial, which never reads the test split."""
        found = candidate(self.tree, values, sections=SECTIONS, origins={}, source=self.source)
        return {**found, "train": {**found["train"], "test": False}}

    @property
    def optuna_direction(self) -> Literal["maximize", "minimize"]:
        return "maximize" if self.direction == "max" else "minimize"


@dataclass(frozen=True)
class Trial:
    """What MLflow holds of one trial."""

    number: int
    name: str
    state: str
    values: Mapping[str, Any]
    score: float | None
    epochs: int
    seconds: float | None
    parameters: int | None
    run_id: str
    problem: str
    data: str
    """Digest of the validation split."""


class Outcome(NamedTuple):
    """How a trial ended."""

    state: str
    score: float | None = None
    problem: str = ""


class Report(Callback):
    """Names the run of a trial, reports its score after each epoch, and stops it where that is wanted.

    Args:
        name: of the run.
        metric: the score.
        report: takes epoch and score; True if the trial is hopeless.
        interrupted: True if the whole sweep is to stop; asked at each step.
    """

    def __init__(
        self, name: str, metric: str, report: Callable[[int, float], bool], interrupted: Callable[[], bool]
    ) -> None:
        self.name, self.metric, self.report, self.interrupted = name, metric, report, interrupted
        self.epochs = 0
        self._hopeless = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            patience.client().update_run(getattr(logger, "run_id"), name=self.name)  # noqa: B009  (not of every logger)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not at the end of the epoch before, which other callbacks have yet to write down.
        if self._hopeless:
            raise Pruned(f"stopped after epoch {self.epochs}: other trials promise more")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        if self.interrupted():
            raise Stopped(f"stopped in epoch {trainer.current_epoch + 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1
        score = float(trainer.callback_metrics[f"validation/{self.metric}"])
        self._hopeless = self.report(trainer.current_epoch, score)


def run_trial(
    plan: Plan,
    parent: str,
    folder: Path,
    number: int,
    sampled: Mapping[str, Any],
    report: Callable[[int, float], bool],
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train one trial, or go on with it where it was cut off, or tell how it ended if it has.

    Args:
        plan: the sweep.
        parent: id of its run.
        folder: of the sweep.
        number: of the trial.
        sampled: key -> what was sampled.
        report: takes epoch and score, says whether the trial is hopeless.
        interrupted: True if the sweep is to stop.

    Raises:
        Stopped: if ``interrupted``, or on Ctrl-C.
        DataError: if the data cannot be used, which no other trial will mend.
        ReferenceNotFound: if the tracking server cannot be used.
    """
    from pipelines import run

    values = plan.values(sampled)
    known = _of_number(plan, parent, number)
    for found in (_trial(plan, child) for child in known):
        if found.state in ENDED and found.values == values:
            return Outcome(found.state, found.score, found.problem)
    stem, runs = f"{plan.stem}-{number}", folder / "trials"
    callback = Report(_name(number, values), plan.metric, report, interrupted)
    try:
        resolved = plan.resolved(values)
        cut = _unfinished(runs, stem, resolved)
        for other in known:
            if other.info.run_id != cut:
                patience.client().set_tag(other.info.run_id, STATE, INTERRUPTED)
                tracking.finish(other.info.run_id, "KILLED")
        trained = run.train_resolved(stem, resolved, resume=cut is not None, register=False, progress=False, runs=runs,
                                     tags=_tags(parent, number, values), callbacks=[callback])  # fmt: skip
    except Pruned as stop:
        outcome = Outcome(PRUNED, problem=str(stop))
    except (Stopped, DataError, ReferenceNotFound, patience.Unreachable):
        raise
    except Exception as error:
        if not isinstance(error, SeqappError):
            log.exception("trial %d failed", number)
        outcome = Outcome(FAILED, problem=str(error) or type(error).__name__)
    else:
        outcome = Outcome(COMPLETE, trained.scores["validation"][plan.metric])
        end_trial(trained.run_id, outcome, callback.epochs)
        return outcome
    close_trial(plan, parent, number, sampled, outcome, callback.epochs)
    return outcome


def close_trial(
    plan: Plan, parent: str, number: int, sampled: Mapping[str, Any], outcome: Outcome, epochs: int = 0
) -> None:
    """Close the run of a trial that was not completed, and make it one if it came to none.

    Args:
        plan: the sweep.
        parent: id of its run.
        number: of the trial.
        sampled: key -> what was sampled.
        outcome: pruned or failed.
        epochs: it has trained.
    """
    values = plan.values(sampled)
    running = [child.info.run_id for child in _of_number(plan, parent, number) if _state(child) == "running"]
    run_id = running[0] if running else tracking.create_run(plan.experiment, _name(number, values),
                                                           _tags(parent, number, values))  # fmt: skip
    tracking.finish(run_id, "KILLED" if outcome.state == PRUNED else "FAILED")
    end_trial(run_id, outcome, epochs)


def close_cut(plan: Plan, parent: str) -> None:
    """Close the runs that a process left open when it was killed, once nothing trains any more; they can go on."""
    for child in _children(plan, parent):
        if child.info.status == "RUNNING":
            tracking.finish(child.info.run_id, "KILLED")


def end_trial(run_id: str, outcome: Outcome, epochs: int) -> None:
    """Write on the run of a trial how it ended."""
    client = patience.client()
    client.set_tag(run_id, EPOCHS, str(epochs))
    if outcome.problem:
        client.set_tag(run_id, NOTE, outcome.problem[:5000])
    client.set_tag(run_id, STATE, outcome.state)


def trials_of(plan: Plan, parent: str) -> list[Trial]:
    """Every trial that MLflow knows, by number, each once."""
    found: dict[int, Trial] = {}
    for run in _children(plan, parent):
        if run.data.tags.get(NUMBER, "").isdecimal() and _state(run) != INTERRUPTED:
            trial = _trial(plan, run)
            if trial.number not in found or found[trial.number].state not in ENDED:
                found[trial.number] = trial
    return [found[number] for number in sorted(found)]


def best_of(plan: Plan, trials: Sequence[Trial]) -> Trial | None:
    """The complete trial of the best score, the earliest of equals."""
    complete = [trial for trial in trials if trial.state == COMPLETE and trial.score is not None]
    choose = max if plan.direction == "max" else min
    return choose(complete, key=lambda trial: trial.score, default=None)  # type: ignore[arg-type,return-value]


def rows(plan: Plan, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table, the best trial first, then those that were stopped, then those that failed."""
    heads = [
        "trial",
        "state",
        f"validation {plan.metric}",
        "epochs",
        *short_names([axis.key for axis in plan.axes]),
        "parameters",
        "seconds",
    ]
    # A score that is not a number would make the order depend on where it stands.
    sign = -1 if plan.direction == "max" else 1
    order = {state: place for place, state in enumerate(ENDED)}

    def key(trial: Trial) -> tuple[int, float, int]:
        known = trial.score is not None and math.isfinite(trial.score)
        return order.get(trial.state, len(order)), sign * trial.score if known else math.inf, trial.number  # type: ignore[operator]

    cells = [
        [str(trial.number), trial.state, "" if trial.score is None else figure(trial.score), str(trial.epochs or ""),
         *(_cell(trial.values.get(axis.key)) for axis in plan.axes),
         "" if trial.parameters is None else f"{trial.parameters:,}",
         "" if trial.seconds is None else f"{trial.seconds:.1f}"]
        for trial in sorted(trials, key=key)
    ]  # fmt: skip
    return heads, cells


def markdown(plan: Plan, trials: Sequence[Trial]) -> str:
    """The table as Markdown, with what each failed trial says below."""
    heads, cells = rows(plan, trials)
    lines = [" | ".join(line) for line in (heads, ["---"] * len(heads), *cells)]
    table = "".join(f"| {line} |\n" for line in lines)
    failed = "".join(f"- trial {trial.number} failed: {trial.problem}\n" for trial in trials if trial.state == FAILED)
    return table + ("\n" + failed if failed else "")


def as_csv(plan: Plan, trials: Sequence[Trial]) -> str:
    """One line a trial, by number, all figures in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", f"validation_{plan.metric}", "epochs", *(axis.key for axis in plan.axes),
                     "parameters", "seconds", "run_id", "problem"])  # fmt: skip
    for trial in trials:
        shown = [config.inline(trial.values[axis.key]) if axis.key in trial.values else "" for axis in plan.axes]
        writer.writerow([trial.number, trial.state, trial.score, trial.epochs, *shown, trial.parameters, trial.seconds,
                         trial.run_id, trial.problem])  # fmt: skip
    return text.getvalue()


def as_json(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One record a trial, by number."""
    plain = [{**vars(trial), "values": dict(trial.values)} for trial in trials]
    for record in plain:
        if record["score"] is not None and not math.isfinite(record["score"]):
            record["score"] = None
    checked: list[dict[str, Any]] = json.loads(json.dumps(plain, allow_nan=False))
    return checked


def pictures(plan: Plan, trials: Sequence[Trial]) -> Iterator[tuple[str, Figure]]:
    """Optuna's own: the scores in order, the curves of all trials, which keys matter, and which values go together."""
    import matplotlib
    import optuna
    from optuna.visualization import matplotlib as draw

    study = _study(plan, trials)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not complete:
        return
    wanted: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study, target_name=plan.metric),
        "curves": lambda: draw.plot_intermediate_values(study),
    }
    varied = [key for key in complete[0].params if len({str(trial.params[key]) for trial in complete}) > 1]
    differ = len({trial.value for trial in complete}) > 1
    if len(varied) > 1:
        wanted["parallel_coordinate"] = lambda: draw.plot_parallel_coordinate(study, varied, target_name=plan.metric)
    if len(varied) > 1 and differ and len(complete) >= FEWEST_FOR_IMPORTANCE:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        wanted["importance"] = lambda: draw.plot_param_importances(
            study, evaluator=evaluator, params=varied, target_name=plan.metric
        )
    import matplotlib.pyplot as plt

    # Optuna draws through pyplot, which would look for a window, and leaves no room for long names.
    with matplotlib.rc_context({"savefig.bbox": "tight"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plt.switch_backend("agg")
        for name, function in wanted.items():
            axes = function()
            drawn = plt.gcf() if not hasattr(axes, "figure") else axes.figure
            drawn.set_size_inches(9, 5)
            yield name, drawn
            plt.close(drawn)


def _study(plan: Plan, trials: Sequence[Trial]) -> optuna.Study:
    """The trials as a study in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = {COMPLETE: optuna.trial.TrialState.COMPLETE, PRUNED: optuna.trial.TrialState.PRUNED}
    study = optuna.create_study(direction=plan.optuna_direction)
    client = patience.client()
    short = dict(zip((axis.key for axis in plan.axes), short_names([axis.key for axis in plan.axes]), strict=True))
    distributions = {short[axis.key]: axis.distribution() for axis in plan.axes}
    for trial in trials:
        if trial.state not in kinds or trial.score is None or not math.isfinite(trial.score):
            continue
        history = client.get_metric_history(trial.run_id, f"validation/{plan.metric}")
        curve = {point.step: point.value for point in history if math.isfinite(point.value)}
        params = {
            short[key]: config.inline(value) if isinstance(value, dict | list) else value
            for key, value in trial.values.items()
        }
        study.add_trial(optuna.create_trial(state=kinds[trial.state], value=trial.score, params=params,
                                            distributions=distributions, intermediate_values=curve))  # fmt: skip
    return study


def _children(plan: Plan, parent: str, further: str = "") -> list[Any]:
    client = patience.client()
    experiment = client.get_experiment_by_name(plan.experiment)
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            f"tags.`{PARENT}` = '{parent}'{further}",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def _of_number(plan: Plan, parent: str, number: int) -> list[Any]:
    found = _children(plan, parent, f" and tags.{NUMBER} = '{number}'")
    return [child for child in found if _state(child) != INTERRUPTED]


def _name(number: int, values: Mapping[str, Any]) -> str:
    return f"{number}: {label(values)}"


def _tags(parent: str, number: int, values: Mapping[str, Any]) -> dict[str, str]:
    shown = {f"{VALUE}{key}": config.inline(value) for key, value in values.items()}
    return {PARENT: parent, NUMBER: str(number), STATE: "running", **shown}


def _state(run: Any) -> str:
    """A finished run is a complete trial even where a kill came before its tag."""
    return COMPLETE if run.info.status == "FINISHED" else str(run.data.tags.get(STATE, "running"))


def _trial(plan: Plan, run: Any) -> Trial:
    tags, values, state = run.data.tags, run.data.metrics, _state(run)
    score = values.get(f"best_validation/{plan.metric}") if state == COMPLETE else None
    if state == PRUNED:
        score = values.get(f"validation/{plan.metric}")
    searched = {axis.key: config.parse(tags[f"{VALUE}{axis.key}"], VALUE) for axis in plan.axes
                if f"{VALUE}{axis.key}" in tags}  # fmt: skip
    return Trial(
        number=int(tags[NUMBER]), name=run.info.run_name, state=state, values=searched, score=score,
        epochs=int(tags.get(EPOCHS, 0)), seconds=values.get("seconds"),
        parameters=int(values["parameters"]) if "parameters" in values else None, run_id=run.info.run_id,
        problem=tags.get(NOTE, ""), data=tags.get("validation_digest", ""),
    )  # fmt: skip


def _unfinished(runs: Path, stem: str, resolved: Mapping[str, Any]) -> str | None:
    """Id of the run of a trial that was cut off, if there is one that can go on."""
    try:
        directory = last_unfinished(runs, stem, resolved)
    except SeqappError:
        return None
    run_id: str = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))["run_id"]
    return run_id


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else config.inline(value)

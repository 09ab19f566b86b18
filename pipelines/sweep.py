"""Search over values of a config's keys: Optuna chooses and prunes, a trial is a training, MLflow holds all of it."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Param
from rich.markup import escape
from rich.table import Table

from pipelines import patience, tracking
from pipelines.figures import figure
from pipelines.folder import STATE, Busy, last_unfinished, write_state
from pipelines.locks import held
from pipelines.options import SECTIONS
from pipelines.search import DEFAULT_TRIALS, Search, axes_of, grid, outer_first, sampler_of_trial
from pipelines.trials import (
    COMPLETE,
    ENDED,
    FAILED,
    PARENT,
    PRUNED,
    VALUE,
    Outcome,
    Plan,
    Trial,
    as_csv,
    as_json,
    best_of,
    close_cut,
    close_trial,
    markdown,
    pictures,
    rows,
    run_trial,
    trials_of,
)
from seqapp import config
from seqapp.errors import ConfigError, DataError, SeqappError, Stopped
from seqapp.references import ReferenceNotFound, connect
from seqapp.tasks import TASKS

if TYPE_CHECKING:
    import optuna

    from pipelines.run import Trained

log = logging.getLogger(__name__)

RUNS = Path("runs")
BACKENDS = ("optuna", "ray")
STUDY = "study.db"
MOST_DEATHS = 2
"""A trial whose process dies this often, while no other trial runs, has failed."""

Tell = Callable[[Trial, Trial | None, int, int], None]
"""Takes a trial that has ended, the best so far, how many have ended, and how many there will be."""


@dataclass(frozen=True)
class Swept:
    """What a sweep leaves behind."""

    plan: Plan
    run_id: str
    folder: Path
    trials: list[Trial]
    best: Trial
    command: str
    final: Trained | None


def sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    over: Sequence[str] = (),
    jobs: int = 1,
    resume: bool = False,
    final: bool = False,
    backend: str = "optuna",
    address: str | None = None,
    runs: Path = RUNS,
    tell: Tell = lambda trial, best, ended, total: None,
) -> Swept:
    """Train trials of a config whose keys take several values, and say which is best on the validation split.

    Args:
        path: a YAML config, with or without a section ``sweep``.
        overrides: ``key=value``, those of the sweep included, such as ``sweep.trials=30``.
        over: ``key=choices or range``, beside those of the section.
        jobs: trials at once, each in a process of its own if more than one.
        resume: go on with the last unfinished sweep of this very config and these very choices.
        final: train the best once more, read the test split, and register it.
        backend: "optuna" on this machine, or "ray" on a Ray cluster.
        address: of the cluster; None starts Ray on this machine.
        runs: where folders of runs are kept.
        tell: called whenever a trial has ended.

    Raises:
        SeqappError: if the config, a range, the data or the tracking server does not fit, or every trial failed.
        Stopped: on Ctrl-C.
    """
    if jobs < 1:
        raise SeqappError(f"--jobs {jobs}: at least one trial runs at a time")
    plan = plan_of(path, overrides, over, backend)
    if backend == "ray":
        try:
            from pipelines import sweep_ray
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "ray":
                raise
            raise SeqappError("Ray is not installed; `pip install 'seqapp[ray]'`, or --backend optuna") from None
        search: Callable[..., None] = functools.partial(sweep_ray.search, address=address)
        sweep_ray.check(address)
    elif address is not None:
        raise SeqappError("--address is of a Ray cluster; it goes with --backend ray")
    else:
        search = _search
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    connect()
    folder, parent = _open(plan, resume=resume, runs=runs)
    log.info("%s of %d trials over %s; run %s, folder %s", _title(plan), plan.trials,
             ", ".join(axis.key for axis in plan.axes), parent, folder)  # fmt: skip
    try:
        with held(folder, _busy(folder)), tracking.failing(parent):
            told = _Told(plan, parent, tell)
            try:
                with _quiet():
                    search(plan, parent, folder, jobs, told)
            except (ReferenceNotFound, patience.Unreachable):
                raise
            except BaseException:
                close_cut(plan, parent)
                _publish(plan, parent)
                raise
            trials = _publish(plan, parent)
            best = best_of(plan, trials)
            if best is None:
                first = next((trial for trial in trials if trial.state == FAILED), None)
                write_state(folder, parent, plan.record, {}, finished=True)
                raise SeqappError(f"{plan.stem}: none of {len(trials)} trials was completed"
                                  + (f"; trial {first.number} failed: {first.problem}" if first else ""))  # fmt: skip
            trained = _final(plan, parent, best, runs) if final else None
            tracking.finish(parent)
            write_state(folder, parent, plan.record, {}, finished=True)
    except (KeyboardInterrupt, Stopped):
        ended = sum(trial.state in ENDED for trial in trials_of(plan, parent))
        raise Stopped(
            f"stopped after {ended} of {plan.trials} trials; the same command with --resume goes on"
        ) from None
    return Swept(plan, parent, folder, trials, best, command(plan, best), trained)


def plan_of(path: str | Path, overrides: Sequence[str], over: Sequence[str], backend: str = "optuna") -> Plan:
    """What is to be searched, checked before anything is trained.

    Raises:
        ConfigError: naming file, line and field, and what would fit.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"--backend {backend}: one of {', '.join(BACKENDS)} fits")
    tree, origins = config.read(path, overrides, sections=SECTIONS)
    section = config.check_aside("sweep", SECTIONS["sweep"], tree, origins=origins, source=str(path))
    search = Search(**section)
    ranges = dict(search.over or {})
    for choice in over:
        key, equals, text = choice.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--over: {choice!r} is not of the form KEY=CHOICES, such as "
                              "'train.learning_rate=1e-4..1e-2 log'")  # fmt: skip
        origins[("sweep", "over", key.strip())] = f"command line (--over {choice})"
        ranges[key.strip()] = config.parse(text, f"command line (--over {choice})")
    tree.pop("sweep", None)
    resolved = config.check(tree, sections=SECTIONS, origins=origins, source=str(path))
    for name in ("devices", "nodes"):
        if resolved["train"].get(name, 1) != 1:
            raise ConfigError(f"{path}: train.{name} is {resolved['train'][name]}, but a trial trains in one "
                              f"process; train.{name}=1 with --jobs {resolved['train'][name]} would fit")  # fmt: skip
    axes = axes_of(tree, ranges, SECTIONS, origins, str(path))
    trials = search.trials or DEFAULT_TRIALS
    if search.sampler == "grid":
        size = 1
        for values in grid(axes, str(path)).values():
            size *= len(values)
        trials = min(search.trials or size, size)
    metric, direction = TASKS.build(resolved["task"]).selection
    epochs = [resolved["train"]["epochs"], *(max(axis.corners) for axis in axes if axis.key == "train.epochs")]
    return Plan(
        stem=Path(path).stem, source=str(path), tree=tree, axes=tuple(axes), search=search,
        overrides=tuple(choice for choice in overrides if not choice.startswith("sweep.")),
        experiment=resolved["task"]["kind"], metric=metric, direction=direction, epochs=max(epochs), trials=trials,
        backend=backend,
    )  # fmt: skip


def command(plan: Plan, trial: Trial) -> str:
    """What trains the config of a trial by itself."""
    choices = [*plan.overrides, *(f"{key}={config.inline(value)}" for key, value in outer_first(trial.values))]
    return shlex.join(["seqapp", "train", plan.source, *choices])


def told(trial: Trial) -> str:
    """One line of a trial that has ended."""
    score = "" if trial.score is None else f" {figure(trial.score)}"
    after = f" after {trial.epochs} epochs" if trial.state == PRUNED else ""
    return f"{trial.name}: {trial.state}{after}{score}" + (f": {trial.problem}" if trial.state == FAILED else "")


def best_so_far(best: Trial | None) -> str:
    """The best trial in a few words."""
    return "trials" if best is None or best.score is None else f"best {figure(best.score)}, trial {best.number}"


def table(swept: Swept) -> Table:
    """All trials, the best first."""
    drawn = Table(title=escape(f"{_title(swept.plan)}: {swept.plan.experiment}"), title_justify="left")
    heads, cells = rows(swept.plan, swept.trials)
    for place, head in enumerate(heads):
        drawn.add_column(escape(head), justify="left" if place == 1 else "right")
    for line in cells:
        drawn.add_row(*map(escape, line), style="bold" if line[0] == str(swept.best.number) else "")
    return drawn


def conclusion(swept: Swept) -> Iterator[str]:
    """Which trial is best, and what to do with it."""
    best, plan = swept.best, swept.plan
    assert best.score is not None
    yield f"best: trial {best.name}, validation {plan.metric} {figure(best.score)}"
    if swept.final is None:
        yield f"train it with the test split, and register it: {swept.command}"
    else:
        test = swept.final.scores.get("test", {}).get(plan.metric)
        shown = "" if test is None else f", test {plan.metric} {figure(test)}"
        yield f"trained once more{shown}: bundle {swept.final.bundle}, run {swept.final.run_id}"
    yield f"in MLflow: run {swept.run_id} and its children; trials in {swept.folder}"


class _Told:
    """Passes on each trial that has ended, with the best so far, and keeps the parent's page up to date.

    Args:
        plan: the sweep.
        parent: id of its run.
        tell: what a caller wants to know.
    """

    def __init__(self, plan: Plan, parent: str, tell: Tell) -> None:
        self.plan, self.parent, self.tell = plan, parent, tell
        self.data = ""

    def __call__(self, number: int) -> None:
        """
        Raises:
            SeqappError: if the trial was measured on other data than those before.
        """
        trials = trials_of(self.plan, self.parent)
        ended = [trial for trial in trials if trial.state in ENDED]
        trial = next(trial for trial in trials if trial.number == number)
        data = {trial.data for trial in ended if trial.data}
        if len(data) > 1:
            raise SeqappError(f"{self.plan.stem}: the data is not what it was when the sweep began, so its trials "
                              "cannot be compared; sweep without --resume")  # fmt: skip
        best = best_of(self.plan, trials)
        _describe(self.plan, self.parent, trials)
        # The step is the trial, so that the curve of the best so far lies over that of the scores.
        client, metric = patience.client(), self.plan.metric
        if trial.state == COMPLETE and trial.score is not None:
            client.log_metric(self.parent, f"trial/{metric}", trial.score, step=number)
        if best is not None and best.score is not None:
            client.log_metric(self.parent, f"best/{metric}", best.score, step=number)
        self.tell(trial, best, len(ended), self.plan.trials)


def _open(plan: Plan, *, resume: bool, runs: Path) -> tuple[Path, str]:
    """The folder and the parent run of a new sweep, or of the last unfinished one of this very plan."""
    name = f"sweep-{plan.stem}"
    if resume:
        try:
            folder = last_unfinished(runs, name, plan.record)
        except Busy as busy:
            raise SeqappError(_busy(busy.directory)) from None
        except SeqappError:
            raise SeqappError(f"{plan.stem}: no unfinished sweep of this config with these choices in {runs}/; give "
                              "the same choices as before, or sweep without --resume") from None  # fmt: skip
        run_id: str = json.loads((folder / STATE).read_text(encoding="utf-8"))["run_id"]
        tracking.reopen_run(run_id)
        return folder, run_id
    with suppress(SeqappError):
        log.info("an unfinished sweep of this is in %s; --resume goes on with it",
                 last_unfinished(runs, name, plan.record))  # fmt: skip
    tags = {"task": plan.experiment, "metric": plan.metric, "direction": plan.direction, "sweep": plan.search.sampler,
            "backend": plan.backend, **tracking.source_tags()}  # fmt: skip
    run_id = tracking.create_run(plan.experiment, _title(plan), tags)
    client = patience.client()
    search = plan.record["sweep"]
    params = {**{f"over.{key}": text for key, text in search.pop("over").items()}, **search}
    client.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in params.items()])
    client.log_dict(run_id, plan.record, "config.yaml")
    client.log_text(run_id, tracking.environment(), "environment.txt")
    folder = runs / f"{plan.experiment}-{name}-{run_id[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder, run_id, plan.record, {}, finished=False)
    return folder, run_id


def _busy(folder: Path) -> str:
    return f"{folder}: another process goes on with this sweep at this moment; without --resume a new one begins"


def _title(plan: Plan) -> str:
    return f"sweep of {plan.stem}"


def _describe(plan: Plan, parent: str, trials: Sequence[Trial]) -> None:
    """The table and the best on the parent's page, where MLflow shows its description and its tags."""
    best = best_of(plan, trials)
    text = markdown(plan, trials)
    client = patience.client()
    if best is not None and best.score is not None:
        text = (f"Best: trial {best.number}, validation {plan.metric} {figure(best.score)}\n\n"
                f"    {command(plan, best)}\n\n{text}")  # fmt: skip
        client.set_tag(parent, "best_trial", best.name)
        for key, value in best.values.items():
            client.set_tag(parent, f"best.{key}", config.inline(value))
    client.set_tag(parent, "mlflow.note.content", tracking.description(text, "trials.md"))


def _publish(plan: Plan, parent: str) -> list[Trial]:
    """Tables and pictures of all trials, on the parent; returns the trials."""
    trials = trials_of(plan, parent)
    client = patience.client()
    _describe(plan, parent, trials)
    client.log_text(parent, markdown(plan, trials), "trials.md")
    client.log_text(parent, as_csv(plan, trials), "trials.csv")
    client.log_dict(parent, {"trials": as_json(trials)}, "trials.json")
    for name, picture in pictures(plan, trials):
        client.log_figure(parent, picture, f"{name}.png")
    return trials


def _final(plan: Plan, parent: str, best: Trial, runs: Path) -> Trained:
    """The best config, trained as ``seqapp train`` does."""
    from pipelines import run

    resolved = plan.resolved(best.values)
    resolved["train"]["test"] = config.check(plan.tree, sections=SECTIONS)["train"]["test"]
    stem = f"{plan.stem}-best"
    try:
        last_unfinished(runs, stem, resolved)
        resume = True
    except SeqappError:
        resume = False
    tags = {PARENT: parent, "trial": "best", **{f"{VALUE}{key}": config.inline(v) for key, v in best.values.items()}}
    return run.train_resolved(stem, resolved, resume=resume, progress=False, runs=runs, tags=tags)


def _search(plan: Plan, parent: str, folder: Path, jobs: int, told: Callable[[int], None]) -> None:
    """Ask, train and tell until the trials are used up; trials that were cut off come first.

    A process that dies ends those beside it. The trials that ran are suspects then, and run again one at a time, so
    that a trial answers only for its own process.
    """
    url = f"sqlite:///{(folder / STUDY).absolute()}"
    study = _study(plan, url)
    cut = [trial.number for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    suspects: dict[int, int] = {}  # number of a trial -> deaths since it runs alone
    running: dict[Future[Outcome | str], tuple[int, dict[str, Any], Executor]] = {}
    with _Workers(jobs) as workers:
        while True:
            while (not running if suspects else len(running) < jobs) and (
                suspects or cut or len(study.get_trials(deepcopy=False)) < plan.trials
            ):
                again = next(iter(suspects)) if suspects else cut.pop(0) if cut else None
                number, sampled = _ask(plan, study, again)
                future = workers.submit(_work, plan, parent, folder, number, sampled, url)
                running[future] = number, sampled, workers.pool
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, sampled, pool = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    workers.renew(pool)
                    log.warning("trial %d: its process died%s; memory may be short", number,
                                "" if number in suspects else ", or one beside it; it runs again, alone")  # fmt: skip
                    suspects[number] = suspects.get(number, -1) + 1
                    if suspects[number] < MOST_DEATHS:
                        continue
                    outcome = Outcome(FAILED, problem=f"its process died {MOST_DEATHS} times while no other trial ran; "
                                                      "a smaller train.batch_tokens takes less memory")  # fmt: skip
                    close_trial(plan, parent, number, sampled, outcome)
                if isinstance(outcome, str):
                    raise SeqappError(outcome)
                suspects.pop(number, None)
                _tell(study, number, outcome)
                told(number)


def _ask(plan: Plan, study: optuna.Study, number: int | None) -> tuple[int, dict[str, Any]]:
    """A new trial, or that of a number which was cut off, perhaps before all of its values were drawn."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    drawing = sampler_of_trial(plan.search, plan.axes, plan.source, len(trials) if number is None else number)
    asked = optuna.load_study(study_name=study.study_name, storage=study._storage, sampler=drawing,
                              pruner=study.pruner)  # fmt: skip
    trial = asked.ask() if number is None else optuna.Trial(asked, trials[number]._trial_id)
    return trial.number, {axis.key: axis.suggest(trial) for axis in plan.axes}


def _tell(study: optuna.Study, number: int, outcome: Outcome) -> None:
    import optuna

    states = {COMPLETE: optuna.trial.TrialState.COMPLETE, PRUNED: optuna.trial.TrialState.PRUNED,
              FAILED: optuna.trial.TrialState.FAIL}  # fmt: skip
    study.tell(number, outcome.score if outcome.state == COMPLETE else None, state=states[outcome.state])


def _work(plan: Plan, parent: str, folder: Path, number: int, sampled: Mapping[str, Any], url: str) -> Outcome | str:
    """Train one trial, in whatever process; a text is why no trial can be trained."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(plan, url)
    trial = optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def report(epoch: int, score: float) -> bool:
        # An epoch that was reported before a kill is reported.
        if epoch not in study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(score, epoch)
        return trial.should_prune()

    try:
        return run_trial(plan, parent, folder, number, sampled, report, lambda: _stop is not None and _stop.is_set())
    except (DataError, ReferenceNotFound, patience.Unreachable) as error:
        return str(error)


def _study(plan: Plan, url: str) -> optuna.Study:
    import optuna

    return optuna.create_study(
        study_name="sweep", storage=_storage(url), load_if_exists=True, pruner=pruner(plan),
        sampler=optuna.samplers.RandomSampler(0), direction=plan.optuna_direction,
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def _storage(url: str) -> Any:
    from optuna.storages import RDBStorage

    # Another process may be writing.
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """Optuna's pruner that a plan names."""
    import optuna

    if plan.search.pruner == "median":
        return optuna.pruners.MedianPruner(plan.search.startup, plan.search.warmup)
    if plan.search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min(plan.search.warmup + 1, plan.epochs), plan.epochs, 3)
    return optuna.pruners.NopPruner()


class _Workers:
    """Runs trials: one at a time in this very process, or several in processes of their own."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.context = multiprocessing.get_context("spawn")
        self.stop = self.context.Event()
        self.pool = self._pool()

    def _pool(self) -> Executor:
        if self.jobs == 1:
            return _Here()
        threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        return ProcessPoolExecutor(self.jobs, self.context, _begin, (self.stop, threads))

    def submit(self, *call: Any) -> Future[Any]:
        try:
            return self.pool.submit(*call)
        except BrokenProcessPool:
            # It broke since the last answer, which is nothing against this call.
            self.renew(self.pool)
            return self.pool.submit(*call)

    def renew(self, broken: Executor) -> None:
        """Start new processes, after one of ``broken`` has died and so ended all of them."""
        if broken is self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = self._pool()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is not None:
                # Trials end at their next step, with a checkpoint of the epoch before.
                self.stop.set()
            self.pool.shutdown(wait=True, cancel_futures=True)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()
            raise


class _Here(Executor):
    """Does what it is told at once."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


_stop: Event | None = None


def _begin(stop: Event, threads: int) -> None:
    """Make a worker one: Ctrl-C is the first process's business, and without that there is nothing to do."""
    import torch

    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what each training says of each epoch: a line a trial is enough."""
    talkative = logging.getLogger("pipelines")
    level = talkative.level
    talkative.setLevel(logging.WARNING)
    try:
        yield
    finally:
        talkative.setLevel(level)

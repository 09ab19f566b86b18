"""Train, evaluate, predict and export, as plain functions that a program or the command line calls."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging

from pipelines import figures, patience, promotion, tracking
from pipelines.baselines import BASELINES, BaselineResult, run_baseline
from pipelines.calibrate import answers, calibrate, reliability
from pipelines.card import intervals, model_card
from pipelines.costs import PeakMemory, latency, told
from pipelines.data import Data
from pipelines.distributed import Endings, join
from pipelines.dynamic import dynamic_scores
from pipelines.folder import Busy, open_run, write_state
from pipelines.locks import held
from pipelines.measure import measure
from pipelines.module import Learner, running_average
from pipelines.options import SECTIONS, Training
from pipelines.outbox import Outbox, RunLogger, opened
from pipelines.outcomes import log_outcomes
from pipelines.publish import confusions, headline, publish, translations
from pipelines.stopping import ANEW, HOW_ON, NOT_YET, heed, how_on, note, stoppable
from pipelines.system import system_metrics
from pipelines.watch import Bar, GateWatch, RecurrentWatch, Samples
from seqapp import bundle, config, metrics
from seqapp.bundle import Bundle
from seqapp.data.splits import SOURCES, Splits
from seqapp.errors import BundleError, ConfigError, DataError, SeqappError, Stopped
from seqapp.models.language_model import LanguageModel
from seqapp.nn.recurrent import NotFinite
from seqapp.references import connect
from seqapp.registry import InvalidOption
from seqapp.tasks import TASKS, InputError, Task

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

RUNS = Path("runs")
GOLDEN = 8


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind."""

    run_id: str
    task: str
    name: str
    bundle: Path
    scores: dict[str, dict[str, float]]
    parameters: int
    seconds: float
    registered: promotion.Registered | None


def train(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    register: bool = True,
    progress: bool = True,
    runs: Path = RUNS,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trained:
    """Train what a config describes, log it to MLflow, write the bundle and register it.

    Args:
        path: a YAML config.
        overrides: ``key=value``.
        resume: go on with the last unfinished run of this very config.
        register: make a new version in the model registry.
        progress: draw progress bars.
        runs: where checkpoints and bundles are kept, a folder a run.
        tags: further ones of the MLflow run, such as ``mlflow.parentRunId``.
        callbacks: further ones of the trainer.

    Raises:
        SeqappError: if the config, the data or the tracking server does not fit.
        Stopped: on Ctrl-C.
    """
    path = Path(path)
    resolved = config.load(path, overrides, sections=SECTIONS)
    return train_resolved(path.stem, resolved, resume=resume, register=register, progress=progress, runs=runs,
                          tags=tags, callbacks=callbacks)  # fmt: skip


def train_resolved(
    stem: str,
    resolved: Mapping[str, Any],
    *,
    resume: bool = False,
    register: bool = True,
    progress: bool = True,
    runs: Path = RUNS,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[Callback] = (),
    digests: Mapping[str, str] | None = None,
) -> Trained:
    """As :func:`train`, of a config that is resolved already.

    Args:
        stem: name of the run, such as "bundled-lstm".
        resolved: what :func:`seqapp.config.load` returns.
        resume: as :func:`train`, as is everything else.
        register: make a new version in the model registry.
        progress: draw progress bars.
        runs: where folders of runs are.
        tags: further ones of the run.
        callbacks: further ones of the trainer.
        digests: split -> the beginning of the SHA-256 that its data must have.
    """
    options = Training(**resolved["train"])
    task: Task[Any, Any] = TASKS.build(resolved["task"])
    _check(options, task, resolved["task"]["kind"])
    note(NOT_YET)
    processes = join(options)
    if processes.first:
        connect()
    started = time.monotonic()

    splits = splits_of(resolved, digests)
    if not isinstance(splits.train[0], task.example_type):
        raise ConfigError(
            f"{stem}: the data {resolved['data']['kind']!r} yields {type(splits.train[0]).__name__}, "
            f"the task {resolved['task']['kind']!r} takes {task.example_type.__name__}"
        )
    digests = splits.digests()
    processes.same(digests, "data")
    task.prepare(splits.train)
    data = Data(
        task,
        splits,
        batch_tokens=options.batch_tokens,
        batch_rows=options.batch_rows,
        seed=options.seed,
        truncate=options.truncate,
        rank=processes.rank,
        world=processes.world,
    )
    tests = {name: data.encode(name) for name in ("test", *splits.further) if options.test and splits.all()[name]}
    pl.seed_everything(options.seed, verbose=False)
    model = task.build_model(resolved["model"])
    if options.truncate:
        task.check_carries(model)
    task.fit_model(model, data.train_items)
    learner = Learner(
        task,
        model,
        learning_rate=options.learning_rate,
        schedule=options.schedule,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        seed=options.seed,
        truncated=options.truncate > 0,
        processes=processes,
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())

    sizes = {name: len(examples) for name, examples in splits.all().items() if examples}
    if processes.first:
        heed()  # there is a run to close now
    directory, run_id = processes.from_first(lambda: open_run(
        stem, task, resolved, digests, splits.name, sizes=sizes, resume=resume, runs=runs, tags=tags or {}
    ))  # fmt: skip
    begun = (directory / "checkpoints" / "last.ckpt").is_file()
    note(f"stopped; {HOW_ON}" if begun else f"stopped before the first epoch ended; {ANEW}")
    best = ModelCheckpoint(
        directory / "checkpoints",
        filename="best",
        monitor=f"validation/{task.selection[0]}",
        mode=task.selection[1],
        enable_version_counter=False,
    )
    with (
        held(directory, str(Busy(directory))) if processes.first else nullcontext(),
        tracking.failing(run_id) if processes.first else nullcontext(),
        stoppable(),
        opened(directory, run_id) if processes.first else nullcontext() as outbox,
    ):
        log.info("%s: %s parameters, %s; run %s", stem, f"{parameters:,}", _sizes(splits, task.unit), run_id)
        memory = PeakMemory()
        _fit(learner, data, options, outbox, best, directory, progress=progress, further=[*callbacks, memory])
        note(f"stopped after the last epoch; {HOW_ON}")
        if outbox is None:
            return processes.from_first(_of_the_first)
        kept = best.best_model_path if options.keep == "best" else directory / "checkpoints" / "last.ckpt"
        saved = torch.load(kept, weights_only=True, map_location="cpu")
        learner.load_state_dict(saved["state_dict"])
        learner.to("cpu")
        history = outbox.history()
        if 0 not in dict(history.get("train/seconds", ())):
            outbox.flush()  # a folder without its journal; MLflow has what was logged before
            history = tracking.history(run_id)
        epochs = saved["epoch"] + 1, len(history["train/seconds"])
        seconds = sum(value for _, value in history["train/seconds"])

        totals = {"validation": measure(task, model, data, data.validation_items)}
        chosen = metrics.read(totals["validation"])[task.selection[0]]
        if not math.isfinite(chosen):
            raise SeqappError(f"{stem}: validation {task.selection[0]} is {chosen} in every epoch, so there is "
                              "nothing to keep; a lower train.learning_rate or train.clip_norm fits")  # fmt: skip
        totals |= {name: measure(task, model, data, items) for name, items in tests.items()}
        scores = {split: metrics.read(total) for split, total in totals.items()}
        measured = {"validation": data.validation_items, **tests}
        calibration = calibrate(task, model, data, measured) if options.calibrate else None
        requests = [task.as_request(example) for example in splits.validation[:GOLDEN]]
        costs = {"latency_ms": 1000 * latency(task, model, requests), "peak_memory_bytes": float(memory.bytes)}
        name = promotion.registered_name(resolved["task"]["kind"], stem, options.model_name)
        card = model_card(
            name=f"{name} ({stem})",
            task=task,
            resolved=resolved,
            data_name=splits.name,
            sizes=sizes,
            digests={split: digests[split] for split in sizes},
            parameters=parameters,
            totals=totals,
            epochs=epochs,
            seconds=seconds,
            run_id=run_id,
            command=tracking.command(),
            machine=tracking.machine(),
            source=tracking.source_tags(),
            sample=task.sample(model, data.validation_items),
            calibration=calibration,
            costs=told(costs),
        )
        golden = [task.as_input(example) for example in splits.validation[:GOLDEN]]
        bundle.save(
            directory / "bundle",
            task=task,
            model=model,
            resolved=resolved,
            metrics={"scores": scores, "sizes": sizes, "digests": digests, "parameters": parameters, "run_id": run_id,
                     "seconds": seconds, "confusion": confusions(totals), "translation": translations(task, totals),
                     "calibration": calibration.figures() if calibration else {}},
            name=stem,
            golden=golden,
            card=card,
        )  # fmt: skip
        outbox.flush()
        registered = publish(
            run_id, directory / "bundle", task, history, totals, scores, golden[0].model_dump(),
            sizes=sizes, parameters=parameters, seconds=seconds, costs=costs,
            registered_name=name if register else None, digest=digests["validation"], calibration=calibration,
        )  # fmt: skip
        tracking.finish(run_id)
        write_state(directory, run_id, resolved, digests, finished=True)
        note(f"stopped after the training; run {run_id} is whole")
    trained = Trained(
        run_id, resolved["task"]["kind"], stem, directory / "bundle", scores, parameters, seconds, registered
    )
    log.info("%s: %s; whole command %.0f s", stem, _scores(scores), time.monotonic() - started)
    return processes.from_first(lambda: trained)


def baseline(path: str | Path, overrides: Sequence[str] = ()) -> list[BaselineResult]:
    """Fit the simple methods for the data of a config, and log each as a run that can be compared with the networks.

    Args:
        path: a YAML config, of which the task and the data section count.
        overrides: ``key=value``.

    Raises:
        ConfigError: if there is no method for such data, or the task does not fit them.
    """
    path = Path(path)
    resolved = config.load(path, overrides, sections=SECTIONS)
    task: Task[Any, Any] = TASKS.build(resolved["task"])
    connect()
    splits = splits_of(resolved)
    came = type(splits.train[0])
    fitting = {name: method for name, method in BASELINES.items() if issubclass(came, method.example_type)}
    if not fitting:
        raise ConfigError(f"{path}: the baselines classify, continue or translate texts; the data "
                          f"{resolved['data']['kind']!r} yields {came.__name__}, LabelledText, Passage or SentencePair "
                          "fits")  # fmt: skip
    if not issubclass(came, task.example_type):
        raise ConfigError(f"{path}: the data {resolved['data']['kind']!r} yields {came.__name__}, "
                          f"the task {resolved['task']['kind']!r} takes {task.example_type.__name__}")  # fmt: skip
    return [log_baseline(name, resolved, splits, test=resolved["train"]["test"])[1] for name in fitting]


def log_baseline(
    name: str,
    resolved: Mapping[str, Any],
    splits: Splits[Any],
    *,
    test: bool,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[str, BaselineResult]:
    """Fit one simple method and log it; returns the id of its run and what it reaches.

    Args:
        name: one of ``BASELINES``.
        resolved: sections "task" and "data".
        splits: the data.
        test: read the test split.
        run_name: of the MLflow run, if not ``name``.
        tags: further ones of the run.
    """
    task: Task[Any, Any] = TASKS.build(resolved["task"])
    digests = splits.digests()
    sizes = {split: len(examples) for split, examples in splits.all().items() if examples}
    metric, direction = task.selection
    about = {"task": resolved["task"]["kind"], "network": f"none ({BASELINES[name].kind})", "baseline": name,
             "dataset": splits.name, "validation_digest": digests["validation"], "test_digest": digests["test"],
             "metric": metric, "direction": direction, "metric_definition": task.metric_definition,
             "scale": "share of examples" if metric in task.shares else "number",
             "machine": tracking.machine_line(), "command": tracking.command(), **tracking.source_tags(),
             **(tags or {})}  # fmt: skip
    run_id = tracking.create_run(resolved["task"]["kind"], run_name or name, about)
    with tracking.failing(run_id):
        result = run_baseline(name, task, splits, test=test)
        patience.client().set_tag(run_id, "metric_definition", task.definition_of(result.scores))
        given = {"task": resolved["task"], "data": resolved["data"], "strength": result.strength}
        tracking.log_start(run_id, given, digests, splits.name, sizes)
        logged = {"seconds": result.seconds}
        for split, scores in result.scores.items():
            prefix = "best_validation" if split == "validation" else split
            logged |= {f"{prefix}/{key}": value for key, value in scores.items()}
            logged[f"{split}/examples"] = sizes[split]
        tracking.log_metrics(run_id, logged)
        log_outcomes(run_id, {split: {"outcomes": found} for split, found in result.outcomes.items()})
        said = f"{headline(task, result.scores, sizes)} The simple method `{name}`, fitted in {result.seconds:.1f} s."
        patience.client().set_tag(run_id, "mlflow.note.content", said)
        tracking.finish(run_id)
    return run_id, result


def evaluate(loaded: Bundle, path: Path, *, dynamic: float | None = None, **columns: Any) -> dict[str, Any]:
    """The figures of a bundle on a user's file, ready for JSON.

    Args:
        loaded: a bundle.
        path: the file.
        dynamic: for a language model that reads a stream: also the figures when it goes on learning from what it has
            been scored on, at this learning rate (see :mod:`pipelines.dynamic`).
        columns: which columns hold what; some of the task's ``file_options``.

    Returns:
        ``examples``, every score of the task, ``NAME_interval_95`` for a score that is a share of the examples, and
        ``confusion`` where the task chooses between classes, and ``ece`` and ``brier`` of its probabilities as they are
        answered, ``temperature`` included. ``dynamic`` holds the scores of a dynamic evaluation.

    Raises:
        DataError: naming file and line.
        ConfigError: if the task's files have no such option.
    """
    task = loaded.task
    if dynamic is not None and not 0 <= dynamic < math.inf:
        raise ConfigError(f"dynamic: a learning rate from 0 on fits, such as 1e-4, not {dynamic:g}")
    if dynamic is not None and not (task.streams and isinstance(loaded.model, LanguageModel)):
        raise ConfigError(f"{loaded.path}: dynamic evaluation is for language models that read a stream, not for the "
                          f"task {loaded.manifest.task!r} of this model")  # fmt: skip
    for name in columns:
        if name not in task.file_options:
            raise ConfigError(f"files of the task {loaded.manifest.task!r} have no option {name!r}; "
                              f"known: {', '.join(task.file_options)}")  # fmt: skip
    examples = task.read_examples(path, **columns)
    try:
        data = Data(task, Splits(str(path), [], examples), batch_tokens=4096, batch_rows=64, seed=0)
    except InputError as error:
        raise DataError(f"{path}: example {error.index + 1}: {error.problem}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    try:
        totals = measure(task, loaded.model, data, data.validation_items)
    except NotFinite as error:
        raise _unanswered(loaded, path, examples, str(error)) from None
    scores = metrics.read(totals)
    if odd := [name for name, value in scores.items() if not math.isfinite(value)]:
        raise _unanswered(loaded, path, examples, f"{', '.join(odd)}: not finite")
    certain = intervals(task, totals, len(examples))
    sure: dict[str, float] = {}
    if task.calibrates:
        found = reliability(answers(task, loaded.model, data, data.validation_items), task.temperature).scores()
        sure = {"ece": found["ece"], "brier": found["brier"], "temperature": task.temperature or 1.0}
    learned: dict[str, Any] = {}
    if dynamic is not None:
        assert isinstance(loaded.model, LanguageModel)
        learned = {"dynamic": metrics.read(dynamic_scores(loaded.model, data.validation_items, learning_rate=dynamic))}
        if not all(map(math.isfinite, learned["dynamic"].values())):
            raise DataError(f"{path}: learning at the rate {dynamic:g} makes the text infinitely surprising; a lower "
                            "one fits, such as 1e-4")  # fmt: skip
    return {
        "model": str(loaded.path),
        "data": str(path),
        "examples": len(examples),
        **scores,
        **{f"{name}_interval_95": list(bounds) for name, bounds in certain.items()},
        **sure,
        **confusions({"confusion": totals}),
        **translations(task, {"translation": totals}),
        **learned,
    }


def _unanswered(loaded: Bundle, path: Path, examples: Sequence[Any], problem: str) -> DataError:
    """Why there are no figures: the example that cannot be answered, if asking shows it, else ``problem``."""
    try:
        loaded.predict([loaded.task.as_input(example) for example in examples])
    except InputError as error:
        problem = f"example {error.index + 1}: {error.problem}"
    except NotFinite as error:
        problem = str(error)
    return DataError(f"{path}: {problem}")


def export(loaded: Bundle, target: Path) -> Path:
    """Copy a bundle to ``target``, after asking its golden questions again.

    Raises:
        BundleError: if an answer has changed, something else than a bundle stands at ``target``, or it cannot be
            written.
    """
    loaded.check_golden()
    if target.exists():
        bundle.read_manifest(target)
        if target.samefile(loaded.path):
            raise BundleError(f"{target}: is the very bundle that would be copied; name another directory")
    try:
        bundle.copy(loaded.path, target)
    except OSError as error:
        raise BundleError(f"{target}: cannot be written: {error.strerror or error}") from None
    return target


def splits_of(resolved: Mapping[str, Any], digests: Mapping[str, str] | None = None) -> Splits[Any]:
    """The data of a config.

    Args:
        resolved: the config.
        digests: split -> the beginning of the SHA-256 that its data must have.

    Raises:
        ConfigError: for what only reading the data shows, naming the option.
        DataError: if a digest differs, naming the split.
    """
    try:
        splits = SOURCES.build(resolved["data"])
    except InvalidOption as error:
        raise ConfigError(f"data.{error}") from None
    found = splits.digests() if digests else {}
    for split, digest in (digests or {}).items():
        if not found.get(split, "").startswith(digest):
            raise DataError(f"{splits.name}: the {split} data is not what it was: its SHA-256 begins with "
                            f"{found.get(split, 'nothing')[:len(digest)]}, not with {digest}")  # fmt: skip
    return splits


def _check(options: Training, task: Task[Any, Any], kind: str) -> None:
    """Refuse what no single option can see is wrong.

    Raises:
        ConfigError: naming the option and what would fit.
    """
    if options.clip_norm and options.clip_value:
        raise ConfigError(
            f"train.clip_value is {options.clip_value:g} and train.clip_norm is {options.clip_norm:g}; a gradient is "
            "clipped by value or by norm, so one of them must be 0, such as train.clip_norm=0"
        )
    if options.keep == "last" and options.patience:
        raise ConfigError(
            f"train.keep: last is for a validation score that chooses nothing, but train.patience={options.patience} "
            "stops by it; train.patience=0 fits, or train.keep=best"
        )
    if task.streams and not options.truncate:
        raise ConfigError(
            f"train.truncate: the task {kind!r} reads one long text in pieces of this many steps; 0 does not fit, 128 "
            "would"
        )
    if options.truncate and not task.carries:
        raise ConfigError(
            f"train.truncate: the task {kind!r} reads each row as a whole and carries no state; 0 would fit, not "
            f"{options.truncate}"
        )


def _fit(
    learner: Learner,
    data: Data,
    options: Training,
    outbox: Outbox | None,
    best: ModelCheckpoint,
    directory: Path,
    *,
    progress: bool,
    further: Sequence[Callback] = (),
) -> None:
    name, mode = learner.task.selection
    # `save_last` of the best one would write only epochs that are better; resuming needs the last epoch whatever it is.
    last = ModelCheckpoint(best.dirpath, filename="last", enable_version_counter=False)
    processes = learner.processes
    callbacks: list[Callback] = [best, last]
    if processes.first:
        callbacks += [RecurrentWatch(), GateWatch()]
    if processes.several:
        callbacks.append(Endings())
    if options.average:
        # Buffers are no weights: orders of classes, tables of proposals. They stay as they are.
        callbacks.append(WeightAveraging(use_buffers=False, multi_avg_fn=running_average(options.average)))
    if options.patience:
        callbacks.append(EarlyStopping(f"validation/{name}", mode=mode, patience=options.patience))
    callbacks += [Samples(), *further] if processes.first else further
    if progress := progress and processes.first:
        callbacks.append(Bar(leave=False))
    with warnings.catch_warnings():
        # Loading is a list index here, so workers would only add their start-up; and resuming into a folder that
        # holds checkpoints is what resuming means. The schedule follows the pieces of time, and the first of them may
        # ask for nothing and so leave the optimiser alone.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        # What is logged is added up over the processes before.
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
        warnings.filterwarnings("ignore", message=r".*`lr_scheduler.step\(\)` before `optimizer.step\(\)`.*")
        logger = RunLogger(outbox) if outbox else None
        trainer = pl.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=processes.strategy(),
            precision=options.precision,
            gradient_clip_val=options.clip_value or options.clip_norm or None,
            gradient_clip_algorithm="value" if options.clip_value else "norm",
            logger=logger or False,
            callbacks=callbacks,
            default_root_dir=directory,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=progress,
            enable_model_summary=False,
            deterministic=True,
        )
        saved = directory / "checkpoints" / "last.ckpt"
        processes.same(saved.is_file(), f"checkpoints in {directory}")
        try:
            with system_metrics(outbox):
                trainer.fit(learner, data, ckpt_path=str(saved) if saved.is_file() else None, weights_only=True)
        except SystemExit:
            # Lightning turns Ctrl-C into an exit, and ignores it from then on; callers may want to do more than exit.
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise Stopped(f"stopped in epoch {trainer.current_epoch + 1}; {how_on(trainer.current_epoch)}") from None


def _of_the_first() -> Trained:
    raise AssertionError("the first process measures and publishes")


def _sizes(splits: Splits[Any], unit: str) -> str:
    return " / ".join(f"{len(examples):,}" for examples in splits.all().values()) + f" {unit}"


def _scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{split} {name} {figures.figure(value)}" for split, part in scores.items() for name, value in part.items()
    )

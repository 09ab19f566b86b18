"""Train, evaluate, predict and export, as plain functions that a program or the command line calls."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar, WeightAveraging
from pytorch_lightning.loggers import MLFlowLogger

from pipelines import figures, tracking
from pipelines.baselines import BASELINES, BaselineResult, run_baseline
from pipelines.card import intervals, model_card
from pipelines.costs import PeakMemory, latency
from pipelines.data import Data
from pipelines.dynamic import dynamic_scores
from pipelines.folder import open_run, write_state
from pipelines.measure import measure
from pipelines.module import Learner, running_average
from pipelines.options import SECTIONS, Training
from pipelines.publish import confusions, publish, translations
from pipelines.tracking import Stopped
from pipelines.watch import RecurrentWatch, Samples
from seqapp import bundle, config, metrics
from seqapp.bundle import Bundle
from seqapp.data.splits import SOURCES, Splits
from seqapp.errors import BundleError, ConfigError, DataError, SeqappError
from seqapp.models.language_model import LanguageModel
from seqapp.nn.recurrent import NotFinite
from seqapp.references import connect, tracking_uri
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
    registered: tracking.Registered | None


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
    """
    options = Training(**resolved["train"])
    task: Task[Any, Any] = TASKS.build(resolved["task"])
    _check(options, task, resolved["task"]["kind"])
    connect()
    started = time.monotonic()

    splits: Splits[Any] = _splits(resolved)
    if not isinstance(splits.train[0], task.example_type):
        raise ConfigError(
            f"{stem}: the data {resolved['data']['kind']!r} yields {type(splits.train[0]).__name__}, "
            f"the task {resolved['task']['kind']!r} takes {task.example_type.__name__}"
        )
    digests = splits.digests()
    task.prepare(splits.train)
    data = Data(
        task,
        splits,
        batch_tokens=options.batch_tokens,
        batch_rows=options.batch_rows,
        seed=options.seed,
        truncate=options.truncate,
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
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())

    directory, run_id = open_run(stem, task, resolved, digests, splits.name, resume=resume, runs=runs, tags=tags or {})
    log.info("%s: %s parameters, %s; run %s", stem, f"{parameters:,}", _sizes(splits, task.unit), run_id)
    best = ModelCheckpoint(
        directory / "checkpoints",
        filename="best",
        monitor=f"validation/{task.selection[0]}",
        mode=task.selection[1],
        enable_version_counter=False,
    )
    with tracking.failing(run_id):
        memory = PeakMemory()
        _fit(learner, data, options, run_id, best, directory, progress=progress, further=[*callbacks, memory])
        kept = best.best_model_path if options.keep == "best" else directory / "checkpoints" / "last.ckpt"
        saved = torch.load(kept, weights_only=True, map_location="cpu")
        learner.load_state_dict(saved["state_dict"])
        learner.to("cpu")
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
        sizes = {name: len(examples) for name, examples in splits.all().items() if examples}
        requests = [task.as_request(example) for example in splits.validation[:GOLDEN]]
        costs = {"latency_ms": 1000 * latency(task, model, requests), "peak_memory_bytes": float(memory.bytes)}
        name = options.model_name or f"{resolved['task']['kind']}-{stem.partition('-')[0]}"
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
            command=" ".join(["seqapp", *sys.argv[1:]]),
            machine=tracking.machine(),
            source=tracking.source_tags(),
            sample=task.sample(model, data.validation_items),
        )
        golden = [task.as_input(example) for example in splits.validation[:GOLDEN]]
        bundle.save(
            directory / "bundle",
            task=task,
            model=model,
            resolved=resolved,
            metrics={"scores": scores, "sizes": sizes, "digests": digests, "parameters": parameters, "run_id": run_id,
                     "seconds": seconds, "confusion": confusions(totals), "translation": translations(task, totals)},
            name=stem,
            golden=golden,
            card=card,
        )  # fmt: skip
        registered = publish(
            run_id, directory / "bundle", task, history, totals, scores, golden[0].model_dump(),
            sizes=sizes, parameters=parameters, seconds=seconds, costs=costs,
            registered_name=name if register else None, digest=digests["validation"],
        )  # fmt: skip
        tracking.finish(run_id)
    write_state(directory, run_id, resolved, digests, finished=True)
    trained = Trained(
        run_id, resolved["task"]["kind"], stem, directory / "bundle", scores, parameters, seconds, registered
    )
    log.info("%s: %s; whole command %.0f s", stem, _scores(scores), time.monotonic() - started)
    return trained


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
    splits: Splits[Any] = _splits(resolved)
    came = type(splits.train[0])
    fitting = {name: method for name, method in BASELINES.items() if issubclass(came, method.example_type)}
    if not fitting:
        raise ConfigError(f"{path}: the baselines classify, continue or translate texts; the data "
                          f"{resolved['data']['kind']!r} yields {came.__name__}, LabelledText, Passage or SentencePair "
                          "fits")  # fmt: skip
    if not issubclass(came, task.example_type):
        raise ConfigError(f"{path}: the data {resolved['data']['kind']!r} yields {came.__name__}, "
                          f"the task {resolved['task']['kind']!r} takes {task.example_type.__name__}")  # fmt: skip
    digests = splits.digests()
    metric, direction = task.selection
    results = []
    for name, method in fitting.items():
        tags = {"task": resolved["task"]["kind"], "network": f"none ({method.kind})", "dataset": splits.name,
                "validation_digest": digests["validation"], "test_digest": digests["test"],
                "metric": metric, "direction": direction,
                "scale": "share of examples" if metric in task.shares else "number",
                **tracking.source_tags()}  # fmt: skip
        run_id = tracking.create_run(resolved["task"]["kind"], name, tags)
        with tracking.failing(run_id):
            result = run_baseline(name, task, splits, test=resolved["train"]["test"])
            given = {"task": resolved["task"], "data": resolved["data"], "strength": result.strength}
            tracking.log_start(run_id, given, digests, splits.name)
            logged = {"seconds": result.seconds}
            for split, scores in result.scores.items():
                prefix = "best_validation" if split == "validation" else split
                logged |= {f"{prefix}/{key}": value for key, value in scores.items()}
                logged[f"{split}/examples"] = len(splits.all()[split])
            tracking.log_metrics(run_id, logged)
            tracking.finish(run_id)
        results.append(result)
    return results


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
        ``confusion`` where the task chooses between classes. ``dynamic`` holds the scores of a dynamic evaluation.

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


def _splits(resolved: Mapping[str, Any]) -> Splits[Any]:
    """The data of a config.

    Raises:
        ConfigError: for what only reading the data shows, naming the option.
    """
    try:
        return SOURCES.build(resolved["data"])
    except InvalidOption as error:
        raise ConfigError(f"data.{error}") from None


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
    run_id: str,
    best: ModelCheckpoint,
    directory: Path,
    *,
    progress: bool,
    further: Sequence[Callback] = (),
) -> None:
    name, mode = learner.task.selection
    # `save_last` of the best one would write only epochs that are better; resuming needs the last epoch whatever it is.
    last = ModelCheckpoint(best.dirpath, filename="last", enable_version_counter=False)
    callbacks: list[Callback] = [best, last, RecurrentWatch()]
    if options.average:
        # Buffers are no weights: orders of classes, tables of proposals. They stay as they are.
        callbacks.append(WeightAveraging(use_buffers=False, multi_avg_fn=running_average(options.average)))
    if options.patience:
        callbacks.append(EarlyStopping(f"validation/{name}", mode=mode, patience=options.patience))
    callbacks += [Samples(), *further]
    if progress:
        callbacks.append(RichProgressBar(leave=False))
    with warnings.catch_warnings():
        # Loading is a list index here, so workers would only add their start-up; and resuming into a folder that
        # holds checkpoints is what resuming means. The schedule follows the pieces of time, and the first of them may
        # ask for nothing and so leave the optimiser alone.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=r".*`lr_scheduler.step\(\)` before `optimizer.step\(\)`.*")
        trainer = pl.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=1,
            precision=options.precision,
            gradient_clip_val=options.clip_value or options.clip_norm or None,
            gradient_clip_algorithm="value" if options.clip_value else "norm",
            logger=MLFlowLogger(tracking_uri=tracking_uri(), run_id=run_id),
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
        try:
            trainer.fit(learner, data, ckpt_path=str(saved) if saved.is_file() else None, weights_only=True)
        except SystemExit:
            # Lightning turns Ctrl-C into an exit, and ignores it from then on; callers may want to do more than exit.
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise Stopped(
                f"stopped in epoch {trainer.current_epoch + 1}; `--resume` goes on from the end of the last epoch"
            ) from None


def _sizes(splits: Splits[Any], unit: str) -> str:
    return " / ".join(f"{len(examples):,}" for examples in splits.all().values()) + f" {unit}"


def _scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{split} {name} {figures.figure(value)}" for split, part in scores.items() for name, value in part.items()
    )

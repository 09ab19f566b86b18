"""What MLflow holds of a run, in terms that the plain MLflow pages and client show well."""

from __future__ import annotations

import logging
import math
import os
import platform
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pipelines.figures import figure
from seqapp.errors import SeqappError
from seqapp.references import BUNDLE, connect
from seqapp.tasks import Task

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

log = logging.getLogger(__name__)

# MLflow's own progress lines and hints are for people who call it; here seqapp is the caller.
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("mlflow.tracking").setLevel(logging.WARNING)
logging.getLogger("mlflow.models").setLevel(logging.ERROR)
logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)


class Stopped(SeqappError):
    """Training was interrupted by the user; the message says how to go on."""


@dataclass(frozen=True)
class Registered:
    """A new version in the registry, and whether it is the champion now."""

    name: str
    version: str
    champion: bool
    reason: str


def create_run(experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """A new run of ``experiment``; returns its id."""
    client = connect()
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    return str(client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)


def reopen_run(run_id: str) -> None:
    """Mark a run that was cut off as running again."""
    connect().set_terminated(run_id, RunStatus.to_string(RunStatus.RUNNING))


def log_start(run_id: str, resolved: Mapping[str, Any], digests: Mapping[str, str], data_name: str) -> None:
    """Params, the resolved config, the environment and the data that a run sees."""
    client = connect()
    params = [Param(key, str(value)[:500]) for key, value in flatten(resolved).items()]
    # A server takes at most 100 params in one call.
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_dict(run_id, dict(resolved), "config.yaml")
    client.log_text(run_id, environment(), "environment.txt")
    source = CodeDatasetSource(tags={"kind": resolved["data"]["kind"]})
    with _active(run_id):
        for context, digest in digests.items():
            dataset = MetaDataset(source, name=data_name, digest=digest[:16])  # type: ignore[abstract]
            try:
                mlflow.log_input(dataset, context=context)
            except MlflowException:
                # A run beside this one has entered the same data set between MLflow's look and its own entry.
                mlflow.log_input(dataset, context=context)


def log_metrics(run_id: str, values: Mapping[str, float]) -> None:
    """Figures of the whole run, at most 1000, in one call."""
    now = int(1000 * time.time())
    connect().log_batch(run_id, metrics=[Metric(key, float(value), now, 0) for key, value in values.items()])


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every logged metric: name -> (step, value), one value a step, in order."""
    client = connect()
    series = {}
    for name in client.get_run(run_id).data.metrics:
        points = {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}
        series[name] = sorted(points.items())
    return series


def finish(run_id: str, status: str = "FINISHED") -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    connect().set_terminated(run_id, status)


def log_bundle(run_id: str, directory: Path, task: Task[Any, Any], example: Mapping[str, Any]) -> str:
    """Log a bundle as a pyfunc model that carries seqapp with it; returns the model's URI.

    Args:
        run_id: the run that owns it.
        directory: the bundle.
        task: gives the columns of inputs and answers; see :func:`signature`.
        example: one input, as a record.
    """
    import pandas

    import seqapp

    needed = ("torch", "numpy", "tokenizers", "pydantic", "safetensors", "pyyaml", "pandas")
    requirements = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in needed]
    shown = signature(task)
    columns = [column for column in shown.inputs.input_names() if example.get(column) is not None]
    with _active(run_id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={BUNDLE: str(directory)},
            code_paths=[str(Path(seqapp.__file__).parent)],
            pip_requirements=requirements,
            signature=shown,
            input_example=pandas.DataFrame([{column: example[column] for column in columns}]),
        )
    return str(info.model_uri)


def signature(task: Task[Any, Any]) -> ModelSignature:
    """What MLflow checks before a logged model is asked, and what it says of the answers.

    A field of the input with a plain default is a parameter of the whole call, any other is a column. Lists are columns
    of lists of anything: MLflow would refuse a whole number among floats, and the task checks the content itself.
    Answers show the fields that each of them has, but for mappings, whose keys are data.
    """
    columns: list[ColSpec | TensorSpec] = []
    params = []
    for name, field in task.Input.model_fields.items():
        kind = _plain_type(field.annotation)
        if isinstance(kind, str) and isinstance(field.default, str | bool | int | float) and name != task.line_field:
            params.append(ParamSpec(name, kind, field.default))
        else:
            columns.append(ColSpec(_column_type(field.annotation), name, required=field.is_required()))
    answers: list[ColSpec | TensorSpec] = []
    for name, field in task.Output.model_fields.items():
        shown = _plain_type(field.annotation) or _list_type(field.annotation)
        if field.is_required() and shown is not None:
            answers.append(ColSpec(shown, name))
    given: dict[str, Any] = {"params": ParamSchema(params)} if params else {}
    return ModelSignature(Schema(columns), Schema(answers) if answers else None, **given)


def _plain_type(annotation: Any) -> str | None:
    """MLflow's name of a type of single values, if it is one."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) is Literal and all(isinstance(value, str) for value in get_args(annotation)):
        return "string"
    if isinstance(annotation, type) and issubclass(annotation, str | bool | int | float):
        return next(name for kind, name in _PLAIN.items() if issubclass(annotation, kind))
    return None


_PLAIN: Mapping[type, str] = {str: "string", bool: "boolean", int: "long", float: "double"}
_ANY: Any = AnyType()  # type: ignore[no-untyped-call]


def _list_type(annotation: Any) -> Array | None:
    if get_origin(annotation) is Annotated:
        return _list_type(get_args(annotation)[0])
    if get_origin(annotation) not in (list, tuple, Sequence):
        return None
    inner = get_args(annotation)[0] if get_args(annotation) else Any
    return Array(_plain_type(inner) or _list_type(inner) or _ANY)


def _column_type(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _column_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [_column_type(part) for part in get_args(annotation) if part is not type(None)]
        return kinds[0] if all(kind == kinds[0] for kind in kinds) else _ANY
    if _list_type(annotation) is not None:
        return Array(_ANY)
    plain = _plain_type(annotation)
    return _ANY if plain in (None, "double") else plain


def register(
    run_id: str, model_uri: str, name: str, *, score: tuple[str, float, str], validation_digest: str
) -> Registered:
    """Make a new version of ``name``; it becomes champion only if it is better on the same validation set.

    Args:
        run_id: the run that owns the model.
        model_uri: what :func:`log_bundle` returned.
        name: the registered model.
        score: metric name, value, and "max" or "min", whichever is better.
        validation_digest: of the data the score was measured on.
    """
    client = connect()
    metric, value, direction = score
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"metric": metric, "direction": direction, "score": repr(value), "validation_digest": validation_digest}
    version = client.create_model_version(name, model_uri, run_id, tags=tags).version
    try:
        champion = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        # A server that does not answer must not crown the newcomer; these codes say that there is no champion.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        client.set_registered_model_alias(name, "champion", version)
        return Registered(name, str(version), True, "the first version")
    before = f"version {champion.version}"
    if champion.tags.get("validation_digest") != validation_digest:
        reason = f"the champion, {before}, was measured on other validation data, so the two cannot be compared"
        return Registered(name, str(version), False, reason)
    if champion.tags.get("metric") != metric:
        reason = (f"the champion, {before}, was chosen by {champion.tags.get('metric')} and this one by {metric}, "
                  "so the two cannot be compared")  # fmt: skip
        return Registered(name, str(version), False, reason)
    old = float(champion.tags["score"])
    better = not math.isfinite(old) or (value > old if direction == "max" else value < old)
    if not better:
        return Registered(name, str(version), False, f"validation {metric} {figure(value)} is not better than "
                                                     f"{figure(old)} of the champion, {before}")  # fmt: skip
    client.set_registered_model_alias(name, "champion", version)
    return Registered(name, str(version), True, f"validation {metric} {figure(value)} beats {figure(old)} of {before}")


@contextmanager
def _active(run_id: str) -> Iterator[None]:
    """Make the run MLflow's active one, for the functions that take no run id, and leave it running."""
    with mlflow.start_run(run_id=run_id):
        yield
    reopen_run(run_id)


@contextmanager
def failing(run_id: str) -> Iterator[None]:
    """Close the run as KILLED on Ctrl-C and as FAILED on any other error, which goes on upwards."""
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        finish(run_id, "KILLED")
        raise
    except BaseException:
        finish(run_id, "FAILED")
        raise


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": [1]}}`` -> ``{"a.b.0": 1}``: one MLflow param per leaf."""
    if isinstance(tree, Mapping):
        pairs: Sequence[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def source_tags() -> dict[str, str]:
    """The git commit of the working directory and whether it has uncommitted changes; empty outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git_commit": commit, "git_dirty": str(dirty).lower()}


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    import torch

    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def environment() -> str:
    """Command, machine and every installed package with its version."""
    packages = sorted({f"{dist.name}=={dist.version}" for dist in metadata.distributions()}, key=str.lower)
    facts = [f"# command: {' '.join(sys.argv)}", *(f"# {key}: {value}" for key, value in machine().items())]
    return "\n".join([*facts, *packages]) + "\n"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

"""What MLflow holds of a run, in terms that the plain MLflow pages and client show well."""

from __future__ import annotations

import functools
import getpass
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pipelines import patience
from pipelines.views import experiment_tags
from seqapp import config
from seqapp.errors import SeqappError, Stopped
from seqapp.references import BUNDLE, reason
from seqapp.tasks import Task

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunStatus,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

log = logging.getLogger(__name__)

# MLflow's own progress lines and hints are for people who call it; here seqapp is the caller.
logging.getLogger("alembic").setLevel(logging.WARNING)
# A database that is locked or gone comes with a traceback; what it means is told once, in words.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("mlflow.store.model_registry").setLevel(logging.WARNING)
logging.getLogger("mlflow.tracking").setLevel(logging.WARNING)
logging.getLogger("mlflow.models").setLevel(logging.ERROR)
logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)

LONGEST_TAG = 8_000
"""Characters; MLflow cuts off what is more."""


def create_run(experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """A new run of ``experiment``; returns its id."""
    client = patience.client()

    def known() -> str | None:
        found = client.get_experiment_by_name(experiment)
        return found.experiment_id if found else None

    def new() -> str:
        try:
            return str(client.create_experiment(experiment, tags=experiment_tags(experiment, tags)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or (other := known()) is None:
                raise
            return other  # made by a run beside this one

    experiment_id = known() or patience.once(new, known)
    moment = int(1000 * time.time())

    def made() -> Any:
        runs = client.search_runs([experiment_id], f"attributes.start_time = {moment}")
        return next((run for run in runs if run.info.run_name == name), None)

    run = patience.once(
        lambda: client.create_run(
            experiment_id, start_time=moment, run_name=name, tags={**_origin(experiment, name, tags), **tags}
        ),
        made,
    )
    return str(run.info.run_id)


def reopen_run(run_id: str) -> None:
    """Mark a run that was cut off as running again."""
    patience.client().set_terminated(run_id, RunStatus.to_string(RunStatus.RUNNING))


def log_start(
    run_id: str,
    resolved: Mapping[str, Any],
    digests: Mapping[str, str],
    data_name: str,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Params, the resolved config, the environment and the data that a run sees.

    Args:
        run_id: of the run.
        resolved: its config.
        digests: split -> SHA-256.
        data_name: the data set.
        sizes: split -> number of examples.
    """
    client = patience.client()
    params = [Param(key, str(value)[:500]) for key, value in flatten(resolved).items()]
    # A server takes at most 100 params in one call.
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_text(run_id, config.dump(resolved), "config.yaml")
    client.log_text(run_id, environment(), "environment.txt")
    inputs = [_input(context, digest, data_name, resolved["data"], (sizes or {}).get(context))
              for context, digest in digests.items()]  # fmt: skip
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException:
        # A run beside this one has entered the same data set between MLflow's look and its own entry.
        client.log_inputs(run_id, inputs)


def _input(split: str, digest: str, name: str, options: Mapping[str, Any], size: int | None) -> DatasetInput:
    """A split as MLflow shows it: its file if it has one of its own, else the options of the data source."""
    file = options.get(split)
    kind, source = "local", {"uri": file}
    if not isinstance(file, str):
        told = {key: str(value) for key, value in flatten(options).items() if value is not None}
        kind, source = "code", {"tags": {"mlflow.source.name": options["kind"], **told}}
    profile = None if size is None else json.dumps({"num_rows": size})
    dataset = Dataset(name, digest[:16], kind, json.dumps(source), profile=profile)
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, split)])


def log_metrics(run_id: str, values: Mapping[str, float], model_id: str | None = None) -> None:
    """Figures of the whole run, at most 1000, in one call; the page of the logged model ``model_id`` shows them too.

    What the run has already, from before a stop, is not logged again, measured times included.
    """
    client = patience.client()
    have = client.get_run(run_id).data.metrics
    now = int(1000 * time.time())
    new = [Metric(key, float(value), now, 0, model_id) for key, value in values.items() if key not in have]
    client.log_batch(run_id, metrics=new)


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every logged metric: name -> (step, value), one value a step, in order."""
    client = patience.client()
    series = {}
    for name in client.get_run(run_id).data.metrics:
        points = {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}
        series[name] = sorted(points.items())
    return series


def finish(run_id: str, status: str = "FINISHED") -> None:
    """Close a run as FINISHED, FAILED or KILLED."""
    patience.client().set_terminated(run_id, status)


def description(text: str, file: str) -> str:
    """As many whole lines as the description of a run holds, and where the rest stands.

    Args:
        text: Markdown.
        file: artifact of the run that holds all of it.
    """
    if len(text) <= LONGEST_TAG:
        return text
    rest = f"\n\nThe rest stands in the artifact `{file}`.\n"
    room = LONGEST_TAG - len(rest)
    end = text.rfind("\n", 0, room + 1)
    return text[: end if end >= 0 else room] + rest


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
    client = patience.client()
    model = _logged_model(client, run_id)
    if model.status == LoggedModelStatus.READY:
        return str(model.model_uri)  # from before a stop
    about = Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=about,
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={BUNDLE: str(directory)},
            code_paths=[str(Path(seqapp.__file__).parent)],
            pip_requirements=requirements,
            signature=shown,
            input_example=pandas.DataFrame([{column: example[column] for column in columns}]),
        )
        for cache in list(path.rglob("__pycache__")):
            shutil.rmtree(cache)
        client.log_model_artifacts(model.model_id, str(path))
    return str(client.finalize_logged_model(model.model_id, LoggedModelStatus.READY).model_uri)


def _logged_model(client: Any, run_id: str) -> Any:
    """The run's model on MLflow, made and linked with the run if need be."""
    run = client.get_run(run_id)
    experiment = run.info.experiment_id

    def find() -> Any:
        return next(iter(client.search_logged_models([experiment], f"source_run_id = '{run_id}'")), None)

    def make() -> Any:
        # The name of the run, without what MLflow allows in no name of a model.
        name = re.sub(r"""[/:.%"']+""", "-", run.info.run_name) or "model"
        return client.create_logged_model(experiment, name, source_run_id=run_id, params=run.data.params)

    model = find() or patience.once(make, find)
    if not (run.outputs and any(output.model_id == model.model_id for output in run.outputs.model_outputs)):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


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


@contextmanager
def failing(run_id: str) -> Iterator[None]:
    """Close the run as KILLED on Ctrl-C and as FAILED on any other error, which goes on upwards.

    A server that is away is not waited for: the run stays RUNNING there until it is resumed.
    """
    try:
        yield
    except patience.Unreachable:
        raise
    except (KeyboardInterrupt, Stopped) as error:
        _end(run_id, "KILLED", str(error) or "Stopped by Ctrl-C.")
        raise
    except BaseException as error:
        _end(run_id, "FAILED", f"Failed: {str(error) or type(error).__name__}"[:5000])
        raise


def _end(run_id: str, status: str, note: str) -> None:
    try:
        with patience.no_longer_than(1):
            patience.client().set_tag(run_id, MLFLOW_RUN_NOTE, note)
            finish(run_id, status)
    except (SeqappError, MlflowException) as error:
        # What has ended the run is what the user is to read.
        log.warning("run %s is not closed as %s: %s", run_id, status, reason(error))


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


def _origin(experiment: str, name: str, tags: Mapping[str, str]) -> dict[str, str]:
    """What MLflow's pages show as user, source and version of a run."""
    # One command may train several configs; the pages show the end of a path.
    typed = [path for path in map(Path, sys.argv[1:]) if path.stem == name]
    own = typed if len(typed) == 1 else [path for path in typed if path.parent.name == experiment]
    source = str(own[0]) if own else command()
    shown = {MLFLOW_USER: user(), MLFLOW_SOURCE_NAME: source, MLFLOW_SOURCE_TYPE: "LOCAL"}
    return {**shown, MLFLOW_GIT_COMMIT: tags["git_commit"]} if "git_commit" in tags else shown


def user() -> str:
    """Who is logged in."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in a container
        return "unknown"


def command() -> str:
    """What was typed, such as ``seqapp train configs/sentiment/bundled-lstm.yaml``."""
    return shlex.join(["seqapp", *sys.argv[1:]])


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


def machine_line() -> str:
    """That of :func:`machine` on which times depend, for a tag: equal ones mean times that compare."""
    facts = machine()
    parts = [facts["processor"] or "unknown processor", f"cores: {facts['cores']}", f"threads: {facts['threads']}"]
    return ", ".join(parts + ([facts["gpu"]] if facts["gpu"] else []))


@functools.cache
def _packages() -> tuple[str, ...]:
    """Read once: hundreds of files, and a sweep logs them with every trial."""
    return tuple(sorted({f"{dist.name}=={dist.version}" for dist in metadata.distributions()}, key=str.lower))


def environment() -> str:
    """Command, machine and every installed package with its version."""
    facts = [f"# command: {command()}", *(f"# {key}: {value}" for key, value in machine().items())]
    return "\n".join([*facts, *_packages()]) + "\n"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

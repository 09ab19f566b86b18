"""The deployable directory: everything needed to answer, nothing that can run.

    bundle.yaml          format, version, task, SHA-256 of every other file
    config.yaml          the resolved config it was trained from
    weights.safetensors  tensors only
    tokenizer.json, ...  what the task fitted on its training data
    metrics.json         validation and test figures
    golden.json          a few inputs and the answers they had when the bundle was written
    README.md            the model card

Loading reads YAML, JSON and safetensors; no pickle, no import path, no code.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from seqapp import __version__, config
from seqapp.errors import BundleError, ConfigError
from seqapp.tasks import TASKS, Task

FORMAT = "seqapp-bundle"
VERSION = 1
MANIFEST = "bundle.yaml"

GOLDEN_TOLERANCE = 1e-3
"""How far a probability may move between the machine that wrote a bundle and the one that loads it."""


class Manifest(BaseModel):
    """What ``bundle.yaml`` says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    version: int
    task: str
    name: str
    created: str
    seqapp: str
    files: dict[str, str]


@dataclass
class Bundle:
    """A loaded bundle, ready to answer."""

    path: Path
    manifest: Manifest
    config: dict[str, Any]
    task: Task[Any, Any]
    model: nn.Module
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Answer ``inputs``, each a ``task.Input``."""
        return self.task.predict(self.model, inputs)

    def golden(self) -> tuple[list[Any], list[Any]]:
        """The golden questions, each a ``task.Input``, and the answers they had, as plain values.

        Raises:
            BundleError: if the file does not hold such.
        """
        golden = _read_json(self.path / "golden.json")
        try:
            return (
                [self.task.Input.model_validate(entry["input"]) for entry in golden],
                [entry["output"] for entry in golden],
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise BundleError(f"{self.path / 'golden.json'}: not a list of inputs and outputs: {error}") from None

    def check_golden(self) -> None:
        """Ask the golden questions again.

        Raises:
            BundleError: if an answer differs from the one the bundle was written with.
        """
        inputs, outputs = self.golden()
        for given, expected, answer in zip(inputs, outputs, self.predict(inputs), strict=True):
            got = answer.model_dump(mode="json")
            if not _alike(got, expected):
                raise BundleError(f"{self.path}: the golden input {given} is answered {got}, not {expected}")


def save(
    path: Path,
    *,
    task: Task[Any, Any],
    model: nn.Module,
    resolved: Mapping[str, Any],
    metrics: Mapping[str, Any],
    name: str,
    golden: Sequence[BaseModel] = (),
    card: str = "",
) -> Path:
    """Write a bundle; a directory appears whole or not at all.

    Args:
        path: the directory to make; what stands there is replaced only if it is a bundle.
        task: a prepared task.
        model: what ``task.build_model`` made, trained.
        resolved: the config, every default written out.
        metrics: figures to keep beside the weights; one that is not finite becomes null.
        name: what a person calls it.
        golden: inputs whose answers are stored and asked again after loading.
        card: the model card, Markdown.

    Raises:
        BundleError: if something else than a bundle stands at ``path``, or a golden answer is not finite.
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: exists and is not a bundle, so it is not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        draft.chmod(0o755)
        training = model.training
        model.eval()
        outputs = task.predict(model, golden) if golden else []
        model.train(training)
        answered = [
            {"input": given.model_dump(mode="json"), "output": output.model_dump(mode="json")}
            for given, output in zip(golden, outputs, strict=True)
        ]
        tied = _tied(model)
        save_file({key: value.detach().contiguous() for key, value in model.state_dict().items() if key not in tied},
                  draft / "weights.safetensors")  # fmt: skip
        task.save(draft)
        _write(draft / "config.yaml", config.dump(resolved))
        _write(draft / "metrics.json", _json(_finite_or_null(metrics)))
        try:
            _write(draft / "golden.json", _json(answered))
        except ValueError:
            raise BundleError(f"{path}: a golden answer holds a number that is not finite; a model whose answers are "
                              "finite fits") from None  # fmt: skip
        _write(draft / "README.md", card)
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            task=resolved["task"]["kind"],
            name=name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seqapp=__version__,
            files={file.name: _sha256(file) for file in sorted(draft.iterdir())},
        )
        _write(draft / MANIFEST, config.dump(manifest.model_dump()))
        _put(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return path


def copy(source: Path, target: Path) -> None:
    """Copy a bundle; what stood at ``target`` is replaced once the copy is whole.

    Raises:
        OSError: if it cannot be written; what stood there stands there still.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        shutil.copytree(source, draft, dirs_exist_ok=True)
        _put(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _put(draft: Path, path: Path) -> None:
    """Move a whole directory to ``path``, in the place of what may be there."""
    if not path.exists():
        os.replace(draft, path)
        return
    old = draft.with_name(f"{draft.name}.old")
    os.replace(path, old)
    try:
        os.replace(draft, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old)


def load(path: str | Path) -> Bundle:
    """Read a bundle and check it.

    Args:
        path: the directory.

    Raises:
        BundleError: if it is damaged, truncated, foreign or of an unknown version, with the reason.
    """
    path = Path(path)
    manifest = verify(path)
    for name in ("config.yaml", "weights.safetensors", "metrics.json", "golden.json"):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST}: does not list {name}")
    try:
        resolved = config.parse((path / "config.yaml").read_text(encoding="utf-8"), str(path / "config.yaml"))
        if resolved["task"]["kind"] != manifest.task:
            raise BundleError(
                f"{path}: {MANIFEST} says task {manifest.task!r}, config.yaml {resolved['task']['kind']!r}"
            )
        task = TASKS.build(resolved["task"])
        task.restore(path)
        # On the meta device a model takes no memory, so a foreign config cannot ask for more than the weights file has.
        with torch.device("meta"):
            model = task.build_model(resolved["model"])
    except ConfigError as error:
        raise BundleError(f"{path / 'config.yaml'}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        # RuntimeError: a size beyond what a tensor can have.
        problem = str(error).partition("\n")[0]
        raise BundleError(f"{path / 'config.yaml'}: not the config of a bundle: {type(error).__name__}: {problem}"
                          ) from None  # fmt: skip
    _load_weights(model, path / "weights.safetensors")
    # Nothing trains it, so that what is computed of its weights may be kept.
    model.eval().requires_grad_(False)
    return Bundle(path, manifest, resolved, task, model, _read_json(path / "metrics.json"))


def verify(path: Path) -> Manifest:
    """``bundle.yaml`` of a directory that holds every file it lists, undamaged.

    Raises:
        BundleError: if one is missing or damaged, or the directory is no bundle this program knows.
    """
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        if Path(name).name != name or name in (".", ".."):
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a plain file name")
        if not os.path.isfile(path / name):  # unlike Path.is_file, it takes a name that is too long for absent
            raise BundleError(f"{path / name}: missing; {MANIFEST} lists it")
        if _sha256(path / name) != expected:
            raise BundleError(f"{path / name}: damaged: its SHA-256 is not the one in {MANIFEST}")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """``bundle.yaml`` of a directory, checked for format and version only.

    Raises:
        BundleError: if the directory is no bundle this program knows.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: no such directory")
    if not file.is_file():
        raise BundleError(f"{path}: not a bundle: it has no {MANIFEST}")
    try:
        content = config.parse(file.read_text(encoding="utf-8"), str(file))
    except (ConfigError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: damaged: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{file}: foreign: format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise BundleError(
            f"{file}: format version {content.get('version')!r}; this seqapp {__version__} reads {VERSION}"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: damaged: {where}: {first['msg']}") from None


def _tied(model: nn.Module) -> dict[str, str]:
    """Name of each parameter that is another one as well -> the name under which it is stored."""
    first: dict[int, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            names[name] = known
    return names


def _load_weights(model: nn.Module, file: Path) -> None:
    tied = _tied(model)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    try:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            if names != set(expected):
                odd = sorted(names ^ set(expected))
                raise BundleError(f"{file}: its tensors are not those of the config's model: {', '.join(odd[:5])}")
            for name, tensor in expected.items():
                shape = tuple(stored.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise BundleError(f"{file}: {name} has shape {shape}; the config's model has {tuple(tensor.shape)}")
            # A tensor of safetensors is a view of the mapped file: without a copy, who writes to the file in its place
            # would change a model that is in use, and who cuts it short would end the process.
            state = {name: stored.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{file}: damaged: {error}") from None
    for name, tensor in state.items():
        if tensor.dtype != expected[name].dtype:
            raise BundleError(f"{file}: {name} is {tensor.dtype}; {expected[name].dtype} fits")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BundleError(f"{file}: {name} holds values that are not finite")
    model.load_state_dict(state, strict=False, assign=True)  # names were compared above
    for name, known in tied.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, model.get_parameter(known))


def _alike(got: Any, expected: Any) -> bool:
    if isinstance(got, float) and isinstance(expected, (int, float)):
        return abs(got - expected) <= GOLDEN_TOLERANCE
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_alike(value, expected[key]) for key, value in got.items())
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(_alike, got, expected))
    return bool(got == expected)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not readable JSON: {error}") from None


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Diagnostics of recurrent networks as pictures, JSON and a table: fresh ones, those of a config, those of a run."""

from __future__ import annotations

import json
import logging
import math
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from pipelines import diagnose_figures as drawn
from pipelines import tracking, watch
from pipelines.options import SECTIONS
from seqapp import bundle, config, diagnostics
from seqapp.data.splits import SOURCES, Splits
from seqapp.data.streams import Pieces, Span, Stream
from seqapp.diagnostics import Clipping, GradientFlow, Reading, Saturation
from seqapp.errors import ConfigError, SeqappError
from seqapp.nn.recurrent import RECURRENT, Recurrent, map_carry
from seqapp.references import connect, resolve
from seqapp.registry import Spec, suggest
from seqapp.tasks import TASKS, Task

log = logging.getLogger(__name__)

EXPERIMENT = "diagnose"
FOLDER = "diagnosis"
"""Of the artifacts in the run."""
LENGTHS = (1, 2, 3, 5, 8, 12, 20, 30, 45, 70, 100, 150, 200, 300)
VANISHED, EXPLODED = -3.0, 3.0
"""log10 of the norms at which a gradient counts as gone, or as out of hand."""
GROUPS = (
    "Elman networks, where the start of W decides",
    "Gated networks",
    "Other loops and windows",
    "Four LSTM layers, plain and with skips",
)
"""Panels of fresh networks."""
EXAMPLES = 64
"""Rows of data that gates are measured on."""
LONGEST = 2000
"""Positions of a row that are read, where a task can cut its rows."""


@dataclass(frozen=True)
class Options:
    """How `seqapp diagnose` measures.

    Attributes:
        steps: T, positions of a row that are read.
        rows: B, of which the median and the spread are shown.
        hidden: H, of the fresh networks that no config describes; also their input size.
        scale: standard deviation of random input; 0.1 is that of a fresh embedding.
        threshold: where clipping by norm cuts, unless a config says.
        limit: where clipping by value cuts, unless a config says.
        seed: of fresh weights and random rows; a config's own seed goes before it.
    """

    steps: int = 100
    rows: int = 8
    hidden: int = 32
    scale: float = 0.1
    threshold: float = 1.0
    limit: float = 0.1
    seed: int = 1


@dataclass(frozen=True)
class Subject:
    """One causal layer and what it reads.

    Attributes:
        name: of the curve.
        group: of the panel.
        layer: with the weights to look at.
        x: (B, T, I), rows without padding.
        data: where x comes from.
        carry: where the rows go on from, or None.
    """

    name: str
    group: str
    layer: Recurrent[Any]
    x: Tensor
    data: str
    carry: Any = None


@dataclass
class Diagnosis:
    """What was found, and the files that say it."""

    directory: Path
    files: list[Path] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Network:
    """A fresh network to compare: how to build it, and the panel it stands in."""

    group: str
    spec: Spec
    start: Callable[[nn.Module], None] | None = None


Progress = Callable[[str, int, int], None]
"""What is being done, how many parts are done, and how many there are."""


def diagnose(
    arguments: Sequence[str],
    *,
    networks: Sequence[str] = (),
    out: Path | None = None,
    options: Options = Options(),
    progress: Progress = lambda what, done, total: None,
) -> Diagnosis:
    """Look at fresh networks, at those of configs, or at those of runs and bundles; write pictures and JSON, log both.

    Args:
        arguments: configs (``*.yaml``), ``key=value`` overrides for them, and references as in
            :func:`seqapp.references.resolve`; nothing compares fresh networks of every kind.
        networks: names of fresh networks, without arguments only; none takes all of :func:`fresh_networks`.
        out: where files go; None takes ``runs/diagnosis/NAME``.
        options: sizes, scales and seed.
        progress: is told what happens.

    Raises:
        SeqappError: if an argument leads nowhere or has no causal layer, or files cannot be written.
    """
    overrides = [argument for argument in arguments if "=" in argument]
    named = [argument for argument in arguments if "=" not in argument]
    if overrides and not any(_is_config(name) for name in named):
        raise SeqappError(f"{overrides[0]}: a choice changes a config, and none is given")
    if named and networks:
        raise SeqappError("--networks names fresh networks; configs and runs bring their own, so give one or the other")
    found = Diagnosis(out or Path("runs") / "diagnosis" / _slug("-".join(_stem(name) for name in named) or "networks"))
    if found.directory.exists() and not found.directory.is_dir():
        raise SeqappError(f"{found.directory}: is a file; --out takes a directory")
    try:
        found.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(found.directory, error) from None
    seen = [_look(name, overrides, options) for name in named] or [_fresh(networks, options)]
    subjects = [subject for look in seen for subject in look.subjects]
    found.run_ids = list(dict.fromkeys(look.run_id for look in seen if look.run_id))

    figures: dict[str, Figure] = {}
    curves, flows = _flows(subjects, options, progress)
    title = f"How far gradients reach back: {', '.join(look.name for look in seen)}"
    figures["gradient_flow"] = drawn.gradient_flow(curves, title)
    threshold = next((look.clip[0] for look in seen if look.clip[0]), options.threshold)
    limit = next((look.clip[1] for look in seen if look.clip[1]), options.limit)
    clipped = _clippings(_clip_subjects(subjects), options, threshold, limit, progress)
    figures["clipping"] = drawn.clipping(clipped, threshold, limit)
    saturation = {name: gates for look in seen for name, gates in look.gates.items()}
    if saturation:
        figures["gates"] = drawn.gates(saturation, "Which gates are stuck, on training rows")
    for look in seen:
        if any(len(radii) > 1 for radii, _ in look.spectra.values()):
            name = "spectra" if len(named) == 1 else f"spectra-{_slug(look.name)}"
            figures[name] = drawn.spectra(look.spectra, f"Recurrent matrices of {look.name} while it was trained")
    progress("one tap", 0, 1)
    figure, taps = _one_tap()
    figures["one_tap"] = figure
    progress("one tap", 1, 1)

    found.record = {
        "command": " ".join(["seqapp", *sys.argv[1:]]),
        "config": {look.name: look.config for look in seen if look.config} or None,
        "commit": tracking.source_tags().get("git_commit"),
        "dirty": tracking.source_tags().get("git_dirty") == "true",
        "machine": tracking.machine(),
        "seed": options.seed,
        "options": vars(options),
        "curves": flows,
        "clipping": {name: [vars(point) for point in points] for name, points in clipped.items()},
        "clip_norm": threshold,
        "clip_value": limit,
        "gates": {
            name: {state: _saturations(gates) for state, gates in states.items()} for name, states in saturation.items()
        },
        "recurrent_matrices": {look.name: _spectra_record(look.spectra) for look in seen},
        "one_tap": taps,
        "notes": [note for look in seen for note in look.notes],
    }
    try:
        _write(found, figures)
    except OSError as error:
        raise _unwritable(found.directory, error) from None
    _log(found, named)
    return found


def tables(record: Mapping[str, Any]) -> list[Table]:
    """What a person reads in the terminal."""
    flow = Table(title="gradient over distance: d = T - k steps back, median over rows", title_justify="left")
    for column in ("network", "values in h", "|dh_T/dh_k| per step", "below 0.001 at", "above 1000 at",
                   "|dy_T/dx_k| per step", "exactly 0 from"):  # fmt: skip
        flow.add_column(column, justify="left" if column == "network" else "right")
    for curve in record["curves"]:
        state, output = curve["state"], curve["output"]
        size = f"{curve['state_size']}{'' if curve['exact'] else ' (probed)'}"
        flow.add_row(escape(curve["network"]), size, _factor(state), _distance(state["vanished"]),
                     _distance(state["exploded"]), _factor(output), _distance(output["zero_from"]))  # fmt: skip
    found = [flow]
    if record["gates"]:
        gates = Table(title="gates: share of units and positions", title_justify="left")
        for column in ("layer", "weights", "gate", "shut (< 0.1)", "open (> 0.9)"):
            gates.add_column(column, justify="right" if "(" in column else "left")
        for layer, states in record["gates"].items():
            for state, parts in states.items():
                for gate, shares in parts.items():
                    gates.add_row(escape(layer), state, gate, f"{shares['left']:.1%}", f"{shares['right']:.1%}")
        found.append(gates)
    return found


# what to look at


@dataclass
class _Look:
    """What one argument leads to."""

    name: str
    subjects: list[Subject]
    run_id: str | None = None
    config: Mapping[str, Any] | None = None
    clip: tuple[float, float] = (0.0, 0.0)
    gates: dict[str, dict[str, dict[str, Saturation]]] = field(default_factory=dict)
    spectra: dict[str, tuple[list[tuple[int, float]], list[tuple[int, float]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fresh_networks(options: Options = Options()) -> dict[str, _Network]:
    """Every registered recurrent kind with its defaults, other starts of Elman's, and stacks with and without skips."""
    found = {}
    elman: dict[str, Any] = {"kind": "elman", "hidden_size": options.hidden}
    first, gates, loops, deep = GROUPS
    found["elman"] = _Network(first, elman)
    found["elman-identity-relu"] = _Network(first, {**elman, "activation": "relu", "recurrent_init": "identity"})
    found["elman-small"] = _Network(first, elman, _scaled(0.5))
    found["elman-large"] = _Network(first, elman, _scaled(1.5))
    found["elman-large-linear"] = _Network(first, {**elman, "activation": "identity"}, _scaled(1.5))
    for kind in RECURRENT:
        spec = default_spec(kind, options.hidden)
        if kind in found or kind == "stack" or spec is None:
            continue
        gated = "gru" in kind or "lstm" in kind
        found[kind] = _Network(gates if gated else loops, spec)
    # Gates hold each layer's output back, so what a way past them is worth shows best where there are gates.
    layers = [{"kind": "lstm", "hidden_size": options.hidden}] * 4
    found["lstm-stack"] = _Network(deep, {"kind": "stack", "layers": layers})
    for name, option in RECURRENT["stack"].options.items():
        if option.annotation is bool and option.default is False:
            spec = {"kind": "stack", "layers": layers, name: True}
            found[f"lstm-stack-{name.replace('_', '-')}"] = _Network(deep, spec)
    return dict(sorted(found.items(), key=lambda item: GROUPS.index(item[1].group)))


def default_spec(kind: str, hidden: int) -> dict[str, Any] | None:
    """A spec of ``kind`` with its defaults, ``hidden`` wherever a size has to be given; None if that is not enough."""
    spec: dict[str, Any] = {"kind": kind}
    for name, option in RECURRENT[kind].options.items():
        if not option.required:
            continue
        for value in (hidden, [hidden]):
            try:
                spec[name] = option.check(value, (name,))
                break
            except SeqappError:
                continue
        else:
            return None
    if "hidden_size" in RECURRENT[kind].options:
        spec["hidden_size"] = hidden
    return spec


def _scaled(radius: float) -> Callable[[nn.Module], None]:
    def start(layer: nn.Module) -> None:
        W = layer.get_parameter("W")
        with torch.no_grad():
            W.normal_()
            W.mul_(radius / float(diagnostics.spectral_radius(W)))

    return start


def _fresh(names: Sequence[str], options: Options) -> _Look:
    known = fresh_networks(options)
    for name in names:
        if name not in known:
            raise SeqappError(f"--networks: no network is called {name!r}; {suggest(name, list(known))}")
    look = _Look("fresh networks", [])
    torch.manual_seed(options.seed)
    x = torch.randn(options.rows, options.steps, options.hidden) * options.scale
    data = f"random normal input, standard deviation {options.scale:g}"
    for name in names or known:
        network = known[name]
        # Each network starts from the seed anew, so that choosing fewer of them changes no curve.
        torch.manual_seed(options.seed)
        layer = RECURRENT.build(network.spec, input_size=options.hidden)
        if network.start:
            network.start(layer)
        look.subjects.append(Subject(name, network.group, layer, x, data))
        look.spectra.update({f"{name}: {block}": value for block, value in _spectra_now(layer, 0).items()})
    return look


def _look(name: str, overrides: Sequence[str], options: Options) -> _Look:
    if _is_config(name):
        resolved = config.load(name, overrides, sections=SECTIONS)
        task: Task[Any, Any] = TASKS.build(resolved["task"])
        splits: Splits[Any] = SOURCES.build(resolved["data"])
        task.prepare(splits.train)
        look = _Look(_stem(name), [], config=resolved, clip=_clip(resolved))
        models = {"fresh": _start(task, resolved)}
    else:
        loaded = bundle.load(resolve(name).path)
        task, resolved = loaded.task, loaded.config
        try:
            splits = SOURCES.build(resolved["data"])
        except SeqappError as error:
            raise SeqappError(f"{name}: the data it was trained on is needed, and cannot be read: {error}") from None
        look = _Look(loaded.manifest.name, [], config=resolved, clip=_clip(resolved))
        look.run_id = _known_run(loaded.metrics.get("run_id"))
        models = {"trained": loaded.model, "fresh": _start(task, resolved)}
    batch = _batch(task, splits, options)
    for state, model in models.items():
        title = f"{look.name} ({state})"
        read = diagnostics.record(model, lambda model=model: _run(task, model, batch))  # type: ignore[misc]
        layers = diagnostics.recurrent_layers(model)
        if not layers:
            raise SeqappError(f"{name}: its model has no recurrent layer, so there is nothing to diagnose")
        for inner in diagnostics.outermost(list(layers)):
            look.subjects.append(_subject(f"{title} {inner}", look.name, layers[inner], read.get(inner), options))
            if inner not in read:
                look.notes.append(f"{title} {inner}: is stepped by a decoder, so it is shown on random input")
        for inner, reading in read.items():
            gates = diagnostics.gate_saturation(reading.layer, reading.x, reading.lengths, reading.carry)
            if gates:
                look.gates.setdefault(f"{look.name} {inner}", {})[state] = gates
    _add_spectra(look, models)
    return look


def _clip(resolved: Mapping[str, Any]) -> tuple[float, float]:
    # A bundle of an older seqapp may lack either.
    return resolved["train"].get("clip_norm", 0.0), resolved["train"].get("clip_value", 0.0)


def _start(task: Task[Any, Any], resolved: Mapping[str, Any]) -> nn.Module:
    # As in a training of this config, so that these are the weights it began with.
    pl.seed_everything(resolved["train"]["seed"], verbose=False)
    return task.build_model(resolved["model"])


def _batch(task: Task[Any, Any], splits: Splits[Any], options: Options) -> Any:
    chance = random.Random(options.seed)
    if task.streams:
        stream = task.encode(splits.train[:EXAMPLES])
        assert isinstance(stream, Stream)
        starts = range(0, min(len(stream), EXAMPLES * LONGEST), LONGEST)
        return next(iter(Pieces(stream, [Span(at, min(at + LONGEST, len(stream))) for at in starts], steps=LONGEST)))
    chosen = chance.sample(splits.train, min(EXAMPLES, len(splits.train)))
    items = task.encode(chosen)
    assert not isinstance(items, Stream)
    return task.collate([task.augment(item, chance) for item in items])


def _run(task: Task[Any, Any], model: nn.Module, batch: Any) -> None:
    """One pass over the batch; a row that is a whole book is read in part, where the task can cut it."""
    if int(batch.lengths.max()) > LONGEST:
        with suppress(ConfigError):
            task.loss_carried(model, next(iter(task.chunks(batch, LONGEST))), None)
            return
    task.loss(model, batch)


def _subject(name: str, group: str, layer: Recurrent[Any], reading: Reading | None, options: Options) -> Subject:
    if reading is None:
        generator = torch.Generator().manual_seed(options.seed)
        x = torch.randn(options.rows, options.steps, layer.input_size, generator=generator) * options.scale
        return Subject(name, group, layer, x, f"random normal input, standard deviation {options.scale:g}")
    lengths = reading.lengths if reading.lengths is not None else torch.full((len(reading.x),), reading.x.shape[1])
    # Long enough to see far, short enough that a quarter of the rows reach it.
    steps = min(options.steps, int(lengths.sort().values[(3 * (len(lengths) - 1)) // 4]))
    rows = (lengths >= steps).nonzero()[:, 0][: options.rows]
    carry = None if reading.carry is None else map_carry(lambda leaf: leaf[rows], reading.carry)
    data = f"{len(rows)} training rows, the first {steps} positions that it reads"
    return Subject(name, group, layer, reading.x[rows, :steps], data, carry)


def _add_spectra(look: _Look, models: Mapping[str, nn.Module]) -> None:
    for block, (radii, singular) in _spectra_now(models["fresh"], 0).items():
        look.spectra[block] = (list(radii), list(singular))
    if "trained" not in models:
        return
    history = tracking.history(look.run_id) if look.run_id else {}
    for block, both in look.spectra.items():
        for points, what in zip(both, (watch.RADIUS, watch.SINGULAR), strict=True):
            points += [(step + 1, value) for step, value in history.get(f"{watch.PREFIX}{block}/{what}", ())]
    if not any(key.startswith(watch.PREFIX) for key in history):
        look.notes.append(f"{look.name}: its run has no history of recurrent matrices, so only their start is known")


def _spectra_now(model: nn.Module, epoch: int) -> dict[str, tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
    found = watch.measure(model)
    names = [key.removeprefix(watch.PREFIX).rpartition("/")[0] for key in found if key.endswith(watch.RADIUS)]
    return {
        name: (
            [(epoch, found[f"{watch.PREFIX}{name}/{watch.RADIUS}"])],
            [(epoch, found[f"{watch.PREFIX}{name}/{watch.SINGULAR}"])],
        )
        for name in names
    }


# measuring


def _flows(
    subjects: Sequence[Subject], options: Options, progress: Progress
) -> tuple[list[drawn.Curve], list[dict[str, Any]]]:
    curves, flows = [], []
    for index, subject in enumerate(subjects):
        progress(f"gradient flow: {subject.name}", index, len(subjects))
        torch.manual_seed(options.seed)
        try:
            flow = diagnostics.gradient_flow(subject.layer, subject.x, subject.carry)
        except ValueError as error:
            log.warning("%s: no gradient flow: %s", subject.name, error)
            continue
        record = _flow_record(subject, flow)
        notes = tuple(_note(record[key]) for key in ("state", "output"))
        if not flow.exact:
            log.info("%s: %d values in its state, more than %d; norms are lower bounds from %d probes",
                     subject.name, flow.state_size, diagnostics.EXACT_UP_TO, flow.probes)  # fmt: skip
        curves.append(drawn.Curve(subject.name, subject.group, flow.state, flow.output, (notes[0], notes[1])))
        flows.append(record)
    progress("gradient flow", len(subjects), len(subjects))
    if not curves:
        raise SeqappError("no network keeps a finite state; fewer --steps fit")
    return _grouped(curves), flows


def _grouped(curves: list[drawn.Curve]) -> list[drawn.Curve]:
    """One panel if it can tell all curves apart, else each group cut to what it can."""
    groups = {curve.group for curve in curves}
    if len(curves) <= drawn.MOST_CURVES and len(groups) > 1:
        return [replace(curve, group="") for curve in curves]
    seen: dict[str, int] = {}
    found = []
    for curve in curves:
        part, seen[curve.group] = seen.get(curve.group, 0) // drawn.MOST_CURVES, seen.get(curve.group, 0) + 1
        group = curve.group if part == 0 else f"{curve.group} ({part + 1})"
        found.append(replace(curve, group=group))
    return found


def _flow_record(subject: Subject, flow: GradientFlow) -> dict[str, Any]:
    return {
        "network": subject.name,
        "data": subject.data,
        "rows": len(subject.x),
        "steps": subject.x.shape[1],
        "state_size": flow.state_size,
        "exact": flow.exact,
        "probes": flow.probes,
        "state": _curve_record(flow.state),
        "output": _curve_record(flow.output),
    }


def _curve_record(values: Tensor) -> dict[str, Any]:
    """Of (B, T) log10 norms by distance; null stands for a norm of exactly zero."""
    low, middle, high = diagnostics.row_quantiles(values, drawn.SHARES)
    zero = [distance for distance, value in enumerate(middle.tolist()) if value == -math.inf]
    return {
        "log10_median": _numbers(middle),
        "log10_low": _numbers(low),
        "log10_high": _numbers(high),
        "rate_per_step": float(f"{diagnostics.fitted_rate(middle):.6g}"),
        "vanished": diagnostics.first_beyond(middle, below=VANISHED),
        "exploded": diagnostics.first_beyond(middle, above=EXPLODED),
        "zero_from": zero[0] if zero else None,
    }


def _numbers(values: Tensor) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _note(record: Mapping[str, Any]) -> str:
    if record["zero_from"] is not None:
        return f"0 from d = {record['zero_from']}"
    return f"× {record['rate_per_step']:.3f} a step"


def _clip_subjects(subjects: Sequence[Subject]) -> list[Subject]:
    """A picture of clipping is about the gradient, not the network: a few that differ are enough."""
    wanted = ("elman", "elman-large", "elman-large-linear", "lstm")
    known = [subject for subject in subjects if subject.name in wanted]
    return known if len(known) > 2 else list(subjects[:8])


def _clippings(
    subjects: Sequence[Subject], options: Options, threshold: float, limit: float, progress: Progress
) -> dict[str, list[Clipping]]:
    found = {}
    for index, subject in enumerate(subjects):
        progress(f"clipping: {subject.name}", index, len(subjects))
        torch.manual_seed(options.seed)
        steps = subject.x.shape[1]
        lengths = [*(length for length in LENGTHS if length < steps), steps]
        found[subject.name] = diagnostics.clipped_gradients(
            subject.layer, subject.x, lengths, threshold=threshold, limit=limit
        )
    progress("clipping", len(subjects), len(subjects))
    return found


def _saturations(gates: Mapping[str, Saturation]) -> dict[str, Any]:
    return {
        name: {
            "left": float(part.left.mean()),
            "right": float(part.right.mean()),
            "left_by_unit": _numbers(part.left),
            "right_by_unit": _numbers(part.right),
        }
        for name, part in gates.items()
    }


def _spectra_record(spectra: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {
        name: {watch.RADIUS: [list(point) for point in radii], watch.SINGULAR: [list(point) for point in singular]}
        for name, (radii, singular) in spectra.items()
    }


def _one_tap() -> tuple[Figure, list[dict[str, Any]]]:
    weights = [round(-2 + 0.01 * index, 2) for index in range(401)]
    responses: dict[tuple[str, str], tuple[Tensor, drawn.Regions]] = {}
    record = []
    for activation in diagnostics.TAP_ACTIVATIONS:
        for signal in diagnostics.SIGNALS:
            h = diagnostics.one_tap(activation, torch.tensor(weights, dtype=torch.float64), 40, signal)
            regions = diagnostics.one_tap_regions(activation, weights, signal)
            responses[activation, signal] = (h, regions)
            record.append({
                "activation": activation,
                "signal": signal,
                "regions": [{"from": low, "to": high, "at": (low + high) / 2, **vars(verdict)}
                            for low, high, verdict in regions],
            })  # fmt: skip
    return drawn.one_tap(weights, responses), record


# where it goes


def _write(found: Diagnosis, figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        found.files.append(found.directory / f"{name}.png")
        figure.savefig(found.files[-1], dpi=110)
    found.files.append(found.directory / "diagnosis.json")
    text = json.dumps(found.record, indent=1, ensure_ascii=False, allow_nan=False)
    # A list of numbers on one line each would make a thousand lines of a curve.
    text = re.sub(r"\[\s+((?:-?[\d.e+-]+|null)(?:,\s+(?:-?[\d.e+-]+|null))*)\s+\]",
                  lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)  # fmt: skip
    found.files[-1].write_text(text + "\n", encoding="utf-8")


def _unwritable(directory: Path, error: OSError) -> SeqappError:
    return SeqappError(f"{directory}: cannot be written: {error.strerror or error}; --out takes a directory of yours")


def _log(found: Diagnosis, named: Sequence[str]) -> None:
    """Into the runs that were looked at; a run of its own where there was none."""
    client = connect()
    if not found.run_ids:
        name = ", ".join(_stem(argument) for argument in named) or "fresh networks"
        found.run_ids = [tracking.create_run(EXPERIMENT, name, tracking.source_tags())]
        with tracking.failing(found.run_ids[0]):
            for key, value in found.record["options"].items():
                client.log_param(found.run_ids[0], key, value)
            _log_files(client, found)
            tracking.finish(found.run_ids[0])
    else:
        _log_files(client, found)


def _log_files(client: Any, found: Diagnosis) -> None:
    for run_id in found.run_ids:
        for file in found.files:
            client.log_artifact(run_id, str(file), FOLDER)


def _known_run(run_id: str | None) -> str | None:
    """The run if this tracking server knows it: a bundle may have come from elsewhere."""
    if not run_id:
        return None
    try:
        return str(connect().get_run(run_id).info.run_id)
    except MlflowException:
        return None


def _is_config(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _stem(name: str) -> str:
    return Path(name).stem if _is_config(name) else name.rstrip("/").rpartition("/")[2] or name


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "networks"


def _factor(record: Mapping[str, Any]) -> str:
    return f"× {record['rate_per_step']:.3f}"


def _distance(value: int | None) -> str:
    return "-" if value is None else str(value)

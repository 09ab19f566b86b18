"""The model card of a bundle: what a person should know before they trust it (after Mitchell et al. 2019)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from pipelines.calibrate import Calibration
from pipelines.figures import figure
from seqapp import config
from seqapp.calibration import BINS
from seqapp.metrics import Confusion, Metric, Ratio, wilson_interval
from seqapp.nn.recurrent import ENCODERS
from seqapp.tasks import Task


def intervals(task: Task[Any, Any], totals: Mapping[str, Metric], examples: int) -> dict[str, tuple[float, float]]:
    """Score -> its 95 % interval, for those scores that count right answers, one to an example.

    A share of steps or tokens has none: those of one example hang together, so Wilson's would be too narrow.

    Args:
        task: says which scores are shares.
        totals: the metrics.
        examples: how many they were measured on.
    """
    found = {}
    for metric in totals.values():
        trials = 0
        if isinstance(metric, Confusion):
            trials = int(metric.counts.sum())
        elif isinstance(metric, Ratio):
            trials = metric.count
        for name, value in metric.scores().items():
            if name in task.shares and trials == examples > 0:
                found[name] = wilson_interval(value * trials, trials)
    return found


def network_of(spec: Mapping[str, Any]) -> str:
    """The kinds of the first network that a model spec names, such as "birnn of lstm"; else that of the model.

    Of a model that attends its attention, too: "lstm, additive attention" or "lstm, no attention".
    """
    found = next(iter(_networks(spec)), str(spec["kind"]))
    attention = spec.get("attention")
    if not isinstance(attention, Mapping):
        return found
    kind = str(attention["kind"]).replace("_", "-")
    return f"{found}, {'no' if kind == 'none' else kind} attention"


def _networks(spec: Any) -> list[str]:
    if isinstance(spec, list):
        return [network for part in spec for network in _networks(part)]
    if not isinstance(spec, Mapping):
        return []
    inside = [network for option in spec.values() for network in _networks(option)]
    if spec.get("kind") not in ENCODERS:
        return inside
    return [f"{spec['kind']} of {', '.join(inside)}" if inside else str(spec["kind"])]


def model_card(
    *,
    name: str,
    task: Task[Any, Any],
    resolved: Mapping[str, Any],
    data_name: str,
    sizes: Mapping[str, int],
    digests: Mapping[str, str],
    parameters: int,
    totals: Mapping[str, Mapping[str, Metric]],
    epochs: tuple[int, int],
    seconds: float,
    run_id: str,
    command: str,
    machine: Mapping[str, Any],
    source: Mapping[str, str],
    sample: str | None = None,
    calibration: Calibration | None = None,
    costs: Mapping[str, str] | None = None,
) -> str:
    """Markdown.

    Args:
        name: what a person calls the model.
        task: prepared; says what the model answers, what its scores are called and where its limits lie.
        resolved: the config.
        data_name: the data set.
        sizes: split -> number of examples.
        digests: split -> SHA-256.
        parameters: trained numbers in the model.
        totals: split -> its metrics.
        epochs: the epoch whose weights these are (from 1), and how many were run.
        seconds: wall time of the training.
        run_id: of the MLflow run.
        command: what was typed.
        machine: what it ran on.
        source: the git commit, if known.
        sample: what the model says by itself, if anything.
        calibration: how sure it is of its answers, if they are probabilities of classes.
        costs: what is paid for an answer -> the figure with its unit.
    """
    scores = {split: {key: value for metric in total.values() for key, value in metric.scores().items()}
              for split, total in totals.items()}  # fmt: skip
    certain = {split: intervals(task, total, sizes[split]) for split, total in totals.items()}
    first = task.selection[0]
    columns = sorted(dict.fromkeys(key for part in scores.values() for key in part), key=lambda key: key != first)
    bounded = {key for part in certain.values() for key in part}
    heads = [task.titles.get(key, key) + (" (95 % interval)" if key in bounded else "") for key in columns]
    rows = []
    for split, values in scores.items():
        cells = []
        for key in columns:
            share = key in task.shares
            cell = figure(values[key], share=share) if key in values else ""
            if key in certain[split]:
                low, high = certain[split][key]
                cell += f" ({figure(low, share=share)} to {figure(high, share=share)})"
            cells.append(cell)
        rows.append(f"| {' | '.join([split, f'{sizes[split]:,}', *cells])} |")
    data = "\n".join(f"- {split}: {sizes[split]:,} {task.unit}, SHA-256 `{digests[split]}`" for split in sizes)
    chooser = "No" if resolved["train"]["keep"] == "last" else "The validation"
    about = f"{chooser} split chose between epochs"
    about += "; the test split was read once, after training." if "test" in totals else "."
    if bounded:
        about += f" The interval is Wilson's and\ncovers the choice of {task.unit}, not of seeds."
    commit = source.get("git_commit", "unknown") + (
        " with uncommitted changes" if source.get("git_dirty") == "true" else ""
    )
    # Indented, since a sample may hold any fence.
    said = f"## What it says\n\n{textwrap.indent(sample.strip(), '    ')}\n\n" if sample else ""
    honest = f"{_honesty(calibration)}\n\n" if calibration else ""
    listed = "\n".join(f"- {what}: {paid}" for what, paid in (costs or {}).items())
    paid = f"## Cost\n\n{listed}\n\n" if listed else ""
    return f"""# {name}

{task.describe()}

| {" | ".join(["split", task.unit, *heads])} |
|{"---|" * (2 + len(heads))}
{chr(10).join(rows)}

{about}

{honest}## Data

{data_name}

{data}

## Network

`{network_of(resolved["model"])}`, {parameters:,} parameters. The weights are those of epoch {epochs[0]} of
{epochs[1]}, trained for {seconds:.0f} s.

```yaml
{config.dump(resolved).strip()}
```

{paid}{said}## Limits

{task.limits}

## Origin

- MLflow run: `{run_id}`
- command: `{command}`
- commit: {commit}
- machine: {", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)}
- seed: {resolved["train"]["seed"]}
"""


def _honesty(calibration: Calibration) -> str:
    """The section on how sure the model is."""
    scaled = calibration.temperature is not None
    names = {"ece": "calibration error", "brier": "Brier score", "nll": "nll"}
    heads = [f"{name}{when}" for name in names.values() for when in ((" before", " after") if scaled else ("",))]
    rows = []
    for split, before in calibration.before.items():
        after = calibration.after[split].scores()
        cells = [split, f"{int(before.counts.sum()):,}"]
        for score, value in before.scores().items():
            cells += [figure(told, share=score == "ece") for told in ((value, after[score]) if scaled else (value,))]
        rows.append(f"| {' | '.join(cells)} |")
    done = "Probabilities are those of the logits as they are."
    if scaled:
        done = f"""Logits are divided by the temperature {calibration.temperature:.4g} before they become probabilities;
no label changes (Guo et al. 2017). It was fitted on the validation split, whose figures after it are therefore a
little too good."""
    if calibration.note:
        done += f"\nNote: {calibration.note}."
    judge = "test" if "test" in calibration.after else "validation"
    error = figure(calibration.after[judge].scores()["ece"], share=True)
    return f"""## Calibration

{done}

| {" | ".join(["split", "answers", *heads])} |
|{"---|" * (2 + len(heads))}
{chr(10).join(rows)}

The calibration error (ECE, {BINS} bins) is how far, on average, the share of right answers lies from how sure the
model says it is: {error} on the {judge} split. At 0, of the answers given with 80 % about 80 in 100 are right. The
nll of the table at the top is that of the logits as they are."""

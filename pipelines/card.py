"""The model card of a bundle: what a person should know before they trust it (after Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqapp import config
from seqapp.metrics import wilson_interval


def model_card(
    *,
    name: str,
    resolved: Mapping[str, Any],
    data_name: str,
    sizes: Mapping[str, int],
    digests: Mapping[str, str],
    purpose: str,
    parameters: int,
    scores: Mapping[str, Mapping[str, float]],
    epochs: tuple[int, int],
    seconds: float,
    run_id: str,
    command: str,
    machine: Mapping[str, Any],
    source: Mapping[str, str],
) -> str:
    """Markdown.

    Args:
        name: what a person calls the model.
        resolved: the config.
        data_name: the data set.
        sizes: split -> number of examples.
        digests: split -> SHA-256.
        purpose: one sentence on what it answers.
        parameters: trained numbers in the model.
        scores: split -> metric -> value.
        epochs: the epoch whose weights these are (from 1), and how many were run.
        seconds: wall time of the training.
        run_id: of the MLflow run.
        command: what was typed.
        machine: what it ran on.
        source: the git commit, if known.
    """
    rows = []
    for split, values in scores.items():
        accuracy, size = values["accuracy"], sizes[split]
        low, high = wilson_interval(accuracy * size, size)
        rows.append(
            f"| {split} | {size:,} | {accuracy:.2%} ({low:.2%} to {high:.2%}) | "
            f"{values['macro_f1']:.4f} | {values['nll']:.4f} |"
        )
    data = "\n".join(f"- {split}: {sizes[split]:,} texts, SHA-256 `{digests[split]}`" for split in sizes)
    commit = source.get("git_commit", "unknown") + (
        " with uncommitted changes" if source.get("git_dirty") == "true" else ""
    )
    return f"""# {name}

{purpose}

| split | texts | accuracy (95 % interval) | macro F1 | nll (nats per text) |
|---|---|---|---|---|
{chr(10).join(rows)}

The validation split chose between epochs; the test split was read once, after training. The interval is Wilson's and
covers the choice of texts, not of seeds.

## Data

{data_name}

{data}

## Network

`{resolved["model"]["encoder"]["kind"]}`, {parameters:,} parameters. The weights are those of epoch {epochs[0]} of
{epochs[1]}, trained for {seconds:.0f} s.

```yaml
{config.dump(resolved).strip()}
```

## Limits

It knows the language and the kind of text it was trained on, and answers any other text with the same confidence. It
reads a text as a whole and does not say what an opinion is about. Its probabilities are not calibrated.

## Origin

- MLflow run: `{run_id}`
- command: `{command}`
- commit: {commit}
- machine: {", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)}
- seed: {resolved["train"]["seed"]}
"""

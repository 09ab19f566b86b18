"""Write docs/benchmarks.md from benchmarks/results/*.json.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "benchmarks.md"


def render(records: dict[str, dict[str, Any]]) -> str:
    """The page for results by name."""
    parts = [
        "# Benchmarks",
        "Written by `benchmarks/report.py` from `benchmarks/results/*.json`; do not edit. Each table names the command "
        "that made it. The machine is shared, so times vary; ratios were measured side by side.",
        "## Sentiment",
        "Test accuracy. Weights and strengths are chosen on validation data; the test split is read once per run. "
        "The linear baselines ran in the same command on the same splits.",
    ]
    quality = {name: record for name, record in records.items() if name.startswith("sentiment-")}
    parts.append(_quality(quality))
    speed = {name: record for name, record in records.items() if name.startswith("training-speed-")}
    if speed:
        parts += [
            "## Training speed",
            "Training tokens per second, padding not counted, beside a plain loop over the same model and weights: "
            "random batches of 64 rows padded to the longest, packed sequences, float32, Adam.",
            _speed(speed),
        ]
    parts += ["## Where the figures come from", _origins(records)]
    return "\n\n".join(parts) + "\n"


def _quality(records: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| data | model | seeds | test accuracy: mean (lowest to highest) | validation, mean | training time, mean |",
        "|---|---|---|---|---|---|",
    ]
    seen = set()
    for record in sorted(records.values(), key=lambda record: (record["data"], record["config"])):
        runs = record["runs"]
        accuracy = record["test_accuracy"]
        validation = sum(run["scores"]["validation"]["accuracy"] for run in runs) / len(runs)
        seconds = sum(run["seconds"] for run in runs) / len(runs)
        lines.append(
            f"| {record['data']} | `{Path(record['config']).stem}` ({record['parameters']:,} parameters) | "
            f"{len(runs)} | "
            f"{accuracy['mean']:.2%} ({accuracy['lowest']:.2%} to {accuracy['highest']:.2%}) | {validation:.2%} | "
            f"{seconds:.0f} s |"
        )
        if record["data"] in seen:
            continue
        seen.add(record["data"])
        for baseline in record["baselines"]:
            lines.append(
                f"| {record['data']} | {baseline['name']} | | {baseline['test']:.2%} | {baseline['validation']:.2%} | "
                f"{baseline['seconds']:.0f} s, all strengths |"
            )
    return "\n".join(lines)


def _speed(records: dict[str, dict[str, Any]]) -> str:
    lines = ["| data | precision | ours | plain loop | ratio: median (lowest to highest) |", "|---|---|---|---|---|"]
    for record in records.values():
        median, (low, high) = record["median"], record["ratio_lowest_highest"]
        lines.append(
            f"| {record['data']} | {record['precision']} | {median['ours']:,.0f} | {median['plain']:,.0f} | "
            f"{median['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def _origins(records: dict[str, dict[str, Any]]) -> str:
    lines = ["| result | command | date | commit | machine |", "|---|---|---|---|---|"]
    for name, record in records.items():
        source, machine = record["source"], record["machine"]
        commit = source.get("git_commit", "unknown")[:10] + ("+" if source.get("git_dirty") == "true" else "")
        lines.append(
            f"| {name} | `{record['command']}` | {record['date']} | {commit} | {machine['cores']} cores, "
            f"{machine['processor']}, torch {machine['torch']} |"
        )
    return "\n".join(lines) + "\n\nA `+` after a commit means that tracked files had uncommitted changes."


def load() -> dict[str, dict[str, Any]]:
    """Every committed result by name."""
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


if __name__ == "__main__":
    TARGET.write_text(render(load()), encoding="utf-8")
    print(TARGET)

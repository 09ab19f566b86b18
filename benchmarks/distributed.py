"""The same training with one process and with two: the figures side by side, and how much faster it is.

    python benchmarks/distributed.py [CONFIG] [KEY=VALUE]... [--devices 2] [--seeds 3]

One after the other, in alternating turns, each with all cores to share. Without dropout in the config the figures are
equal to rounding; with it they differ as seeds do. Tokens per second are those of the epochs after the first, of all
processes together, padding not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent


def train(config: Path, choices: list[str], *, devices: int, seed: int) -> dict[str, Any]:
    """Figures of one training in a store of its own."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        command = [sys.executable, "-m", "pipelines", "train", str(config.resolve()), *choices,
                   f"train.devices={devices}", f"train.seed={seed}", "--quiet", "--no-register"]  # fmt: skip
        subprocess.run(command, cwd=folder, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, check=True)
        client = mlflow.MlflowClient(uri)
        ids = [one.experiment_id for one in client.search_experiments()]
        (run,) = client.search_runs(ids, f"attributes.run_name = '{config.stem}'")
        metrics = run.data.metrics
        speeds = [m.value for m in client.get_metric_history(run.info.run_id, "train/tokens_per_second")]
        scores = {name: value for name, value in metrics.items() if name.startswith(("best_validation/", "test/"))}
        scores.pop("test/examples", None)
    return {"devices": devices, "seed": seed, "scores": scores, "seconds": metrics["seconds"],
            "tokens_per_second": statistics.median(speeds[1:] or speeds)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/sentiment/bundled-birnn.yaml")
    parser.add_argument("choices", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    counts = (1, arguments.devices)
    runs = [train(arguments.config, arguments.choices, devices=devices, seed=seed)
            for seed in range(1, arguments.seeds + 1) for devices in counts]  # fmt: skip
    ones, several = ([run for run in runs if run["devices"] == devices] for devices in counts)
    ratios = [b["tokens_per_second"] / a["tokens_per_second"] for a, b in zip(ones, several, strict=True)]
    differences = {name: max(abs(b["scores"][name] - a["scores"][name]) for a, b in zip(ones, several, strict=True))
                   for name in ones[0]["scores"]}  # fmt: skip
    table = Table(title=f"{arguments.config.name} {' '.join(arguments.choices)}", title_justify="left")
    for column in ("figure", "1 process", f"{arguments.devices} processes", "largest difference"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, difference in differences.items():
        means = [statistics.mean(run["scores"][name] for run in part) for part in (ones, several)]
        table.add_row(name, *(f"{mean:.5g}" for mean in means), f"{difference:.2g}")
    speeds = [statistics.median(run["tokens_per_second"] for run in part) for part in (ones, several)]
    table.add_row("tokens/s", *(f"{speed:,.0f}" for speed in speeds), f"x {statistics.median(ratios):.2f}")
    Console(width=140).print(table)
    print(record.write("distributed", {
        "definition": "the same config and seed with 1 and with several processes on one host, in alternating turns; "
        "tokens per second: median of the epochs after the first, padding not counted; ratio: median over seeds",
        "config": arguments.config.name,
        "choices": arguments.choices,
        "devices": arguments.devices,
        "runs": runs,
        "ratio": statistics.median(ratios),
        "largest_differences": differences,
    }))  # fmt: skip


if __name__ == "__main__":
    main()

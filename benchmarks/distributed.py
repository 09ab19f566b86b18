"""The same training with one process and with two: the figures side by side, and how much faster it is.

    python benchmarks/distributed.py [CONFIG] [KEY=VALUE]... [--devices 2] [--seeds 3]

One after the other, in alternating turns, each with all cores to share. Without dropout in the config the figures are
equal to rounding; with it they differ as seeds do. Rounding grows over hundreds of steps, so one process with one
thread stands beside them: it, too, differs from one process with all threads in nothing but rounding. Tokens per second
are those of the epochs after the first, of all processes together, padding not counted.
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


def train(config: Path, choices: list[str], *, devices: int, threads: int | None, seed: int) -> dict[str, Any]:
    """Figures of one training in a store of its own; threads of a process are as many as fit, unless given."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        command = [sys.executable, "-m", "pipelines", "train", str(config.resolve()), *choices,
                   f"train.devices={devices}", f"train.seed={seed}", "--quiet", "--no-register"]  # fmt: skip
        given = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
        subprocess.run(command, cwd=folder, env={**environment, "MLFLOW_TRACKING_URI": uri}, check=True)
        client = mlflow.MlflowClient(uri)
        ids = [one.experiment_id for one in client.search_experiments()]
        (run,) = client.search_runs(ids, f"attributes.run_name = '{config.stem}'")
        metrics = run.data.metrics
        speeds = [m.value for m in client.get_metric_history(run.info.run_id, "train/tokens_per_second")]
        scores = {name: value for name, value in metrics.items() if name.startswith(("best_validation/", "test/"))}
        scores.pop("test/examples", None)
    return {"devices": devices, "threads": threads, "seed": seed, "scores": scores, "seconds": metrics["seconds"],
            "tokens_per_second": statistics.median(speeds[1:] or speeds)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/sentiment/bundled-birnn.yaml")
    parser.add_argument("choices", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    ways = {"one": (1, None), "one_thread": (1, 1), "several": (arguments.devices, None)}
    runs = [{"way": way, **train(arguments.config, arguments.choices, devices=devices, threads=threads, seed=seed)}
            for seed in range(1, arguments.seeds + 1) for way, (devices, threads) in ways.items()]  # fmt: skip
    parts = {way: [run for run in runs if run["way"] == way] for way in ways}
    ratios = [b["tokens_per_second"] / a["tokens_per_second"]
              for a, b in zip(parts["one"], parts["several"], strict=True)]  # fmt: skip
    apart = {
        way: {
            name: max(abs(b["scores"][name] - a["scores"][name]) for a, b in zip(parts["one"], parts[way], strict=True))
            for name in runs[0]["scores"]
        }
        for way in ("one_thread", "several")
    }
    table = Table(title=f"{arguments.config.name} {' '.join(arguments.choices)}", title_justify="left")
    for column in ("figure", "1 process", f"{arguments.devices} processes", "apart", "apart, 1 process of 1 thread"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name in runs[0]["scores"]:
        means = [statistics.mean(run["scores"][name] for run in parts[way]) for way in ("one", "several")]
        far = [apart[way][name] for way in ("several", "one_thread")]
        table.add_row(name, *(f"{mean:.5g}" for mean in means), *(f"{one:.2g}" for one in far))
    speeds = [statistics.median(run["tokens_per_second"] for run in parts[way]) for way in ("one", "several")]
    table.add_row("tokens/s", *(f"{speed:,.0f}" for speed in speeds), f"x {statistics.median(ratios):.2f}", "")
    Console(width=140).print(table)
    print(record.write("distributed", {
        "definition": "the same config and seed with 1 and with several processes on one host, in alternating turns; "
        "tokens per second: median of the epochs after the first, padding not counted; ratio: median over seeds; "
        "apart: the largest difference from 1 process over the seeds",
        "config": arguments.config.name,
        "choices": arguments.choices,
        "devices": arguments.devices,
        "runs": runs,
        "ratio": statistics.median(ratios),
        "apart": apart,
    }))  # fmt: skip


if __name__ == "__main__":
    main()

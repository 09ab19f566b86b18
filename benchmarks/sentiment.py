"""Quality of one config over several seeds, with the linear baselines on the same splits in the same command.

    python benchmarks/sentiment.py configs/sentiment/sst-birnn.yaml --seeds 1 2 3

Weights are chosen on the validation split; the test split is read once per run, by the weights chosen. Runs are logged
to MLflow like any other, but not registered.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from pathlib import Path
from typing import Any

import record

from pipelines.baselines import BASELINES, run_baseline
from pipelines.options import SECTIONS
from pipelines.run import train
from seqapp import config
from seqapp.data.splits import SOURCES, LabelledText
from seqapp.tasks import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        trained = train(arguments.config, [f"train.seed={seed}"], register=False, progress=False)
        runs.append({"seed": seed, "seconds": round(trained.seconds, 1), "scores": trained.scores})
    resolved = config.load(arguments.config, sections=SECTIONS)
    splits = SOURCES.build(resolved["data"])
    task = TASKS.build(resolved["task"])
    methods = [name for name, method in BASELINES.items() if method.example_type is LabelledText]
    baselines = [run_baseline(name, task, splits).record() for name in methods]
    accuracies = [run["scores"]["test"]["accuracy"] for run in runs]
    path = record.write(
        f"sentiment-{arguments.config.stem}",
        {
            "definition": "accuracy on the whole test split; weights chosen by validation accuracy; seconds are those "
            "of the training epochs, validation excluded",
            "config": str(arguments.config),
            "data": splits.name,
            "sizes": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
            "digests": splits.digests(),
            "parameters": trained.parameters,
            "test_accuracy": {
                "mean": statistics.mean(accuracies),
                "lowest": min(accuracies),
                "highest": max(accuracies),
            },
            "runs": runs,
            "baselines": baselines,
        },
    )
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""Quality of one language-model config over several seeds, with a model of counts on the same tokens beside it.

    python benchmarks/language_models.py configs/generation/shakespeare-lstm.yaml --seeds 1 2 --dynamic 1e-4 1e-4 32

The split reported is the test split, read once per run, or where the data has none, validation, for a config that
chooses nothing by it (`train.keep: last`). Runs are logged to MLflow like any other, but not registered.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path
from typing import Any

import record

from pipelines.baselines import run_baseline
from pipelines.dynamic import dynamic_scores
from pipelines.options import SECTIONS
from pipelines.run import train
from seqapp import bundle, config, metrics
from seqapp.data.splits import SOURCES
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation, GenerationInput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dynamic", type=float, nargs=3, metavar=("RATE", "DECAY", "STEPS"),
                        help="also evaluate dynamically, with options chosen elsewhere")  # fmt: skip
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    resolved = config.load(arguments.config, arguments.overrides, sections=SECTIONS)
    splits = SOURCES.build(resolved["data"])
    # The published split of tinyshakespeare, for one, has nothing but its last part to report.
    reported = "test" if splits.test else "validation"
    runs: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    for seed in arguments.seeds:
        began = time.perf_counter()
        trained = train(arguments.config, [*arguments.overrides, f"train.seed={seed}"], register=False, progress=False)
        run: dict[str, Any] = {"seed": seed, "seconds": trained.seconds, "scores": trained.scores,
                               "whole_seconds": time.perf_counter() - began}  # fmt: skip
        loaded = bundle.load(trained.bundle)
        task = loaded.task
        assert isinstance(task, Generation)
        if arguments.dynamic:
            rate, decay, steps = arguments.dynamic
            options = {"learning_rate": rate, "decay": decay, "steps": int(steps)}
            stream = task.encode(getattr(splits, reported))
            began = time.perf_counter()
            run["dynamic"] = metrics.read(dynamic_scores(loaded.model, stream, **options))
            run["dynamic_seconds"] = time.perf_counter() - began
        asked = GenerationInput(temperature=0.8, max_tokens=400, seed=seed)
        run["sample"] = loaded.predict([asked])[0].completions[0].text
        runs.append(run)
    path = record.write(
        f"language-model-{arguments.config.stem}",
        {
            "definition": "nats per token and bits per character of the whole split reported, each token after at "
            "least 512 of the tokens before it; seconds are those of the training epochs, whole_seconds those of "
            "everything from reading the data to the bundle",
            "reported": reported,
            "config": str(arguments.config),
            "overrides": arguments.overrides,
            "data": splits.name,
            "characters": {name: sum(len(passage.text) for passage in getattr(splits, name))
                           for name in ("train", "validation", "test")},
            "digests": splits.digests(),
            "tokens": task.tokenizer.size,
            "parameters": trained.parameters,
            "limit_nats": math.log(task.tokenizer.size),
            "runs": runs,
            "dynamic_options": options,
            "baseline": vars(run_baseline("kneser-ney", TASKS.build(resolved["task"]), splits)),
        },
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

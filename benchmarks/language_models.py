"""Quality of one language-model config over several seeds, with a model of counts on the same tokens beside it.

    python benchmarks/language_models.py configs/generation/shakespeare-lstm.yaml --seeds 1 2 --dynamic

Weights, the order of the n-grams and the options of dynamic evaluation are chosen on the validation split; the test
split is read once per run. Runs are logged to MLflow like any other, but not registered.
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
from pipelines.dynamic import dynamic_scores, search
from pipelines.options import SECTIONS
from pipelines.run import train
from seqapp import bundle, config, metrics
from seqapp.data.splits import SOURCES
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation, GenerationInput

GRID = {"learning_rate": (5e-5, 1e-4, 2e-4), "decay": (1e-3, 3e-3), "steps": (32,)}
"""Tried on validation text for dynamic evaluation, with the first seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dynamic", action="store_true", help="also evaluate dynamically")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    resolved = config.load(arguments.config, arguments.overrides, sections=SECTIONS)
    splits = SOURCES.build(resolved["data"])
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
            validation, test = task.encode(splits.validation), task.encode(splits.test)
            if not options:
                options = search(loaded.model, validation, **GRID)[0][0]
            began = time.perf_counter()
            run["dynamic"] = metrics.read(dynamic_scores(loaded.model, test, **options))
            run["dynamic_seconds"] = time.perf_counter() - began
        asked = GenerationInput(temperature=0.8, max_tokens=400, seed=seed)
        run["sample"] = loaded.predict([asked])[0].completions[0].text
        runs.append(run)
    path = record.write(
        f"language-model-{arguments.config.stem}",
        {
            "definition": "nats per token and bits per character of the whole test split, each token after at least "
            "512 of the tokens before it; weights chosen by validation bits per character; seconds are those of the "
            "training epochs, whole_seconds those of everything from reading the data to the bundle",
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

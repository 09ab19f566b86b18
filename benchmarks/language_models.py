"""Quality of one language-model config over several seeds, with a model of counts on the same tokens beside it.

    python benchmarks/language_models.py configs/generation/shakespeare-lstm.yaml --seeds 1 2 --dynamic 3e-4 1e-4 32

The split reported is the test split, read once per run, or where the data has none, validation, for a config that
chooses nothing by it (`train.keep: last`). Runs are logged to MLflow like any other, but not registered.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from pipelines.dynamic import dynamic_scores
from pipelines.options import SECTIONS
from pipelines.run import train
from seqapp import bundle, config, metrics
from seqapp.completion import GenerationInput
from seqapp.data.splits import SOURCES, Splits
from seqapp.references import connect
from seqapp.tasks import TASKS
from seqapp.tasks.generation import Generation


def reported(splits: Splits[Any]) -> str:
    """The split whose figures count."""
    return "test" if splits.test else "validation"


def run_seed(path: Path, overrides: list[str], seed: int, dynamic: dict[str, Any], threads: int) -> dict[str, Any]:
    """One training and what it reaches."""
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s seed {seed}: %(message)s", datefmt="%H:%M:%S")
    began = time.perf_counter()
    trained = train(path, [*overrides, f"train.seed={seed}"], register=False, progress=False)
    run: dict[str, Any] = {"seed": seed, "threads": threads, "seconds": trained.seconds, "scores": trained.scores,
                           "whole_seconds": time.perf_counter() - began, "parameters": trained.parameters}  # fmt: skip
    loaded = bundle.load(trained.bundle)
    assert isinstance(loaded.task, Generation)
    if dynamic:
        splits = SOURCES.build(loaded.config["data"])
        stream = loaded.task.encode(getattr(splits, reported(splits)))
        began = time.perf_counter()
        run["dynamic"] = metrics.read(dynamic_scores(loaded.model, stream, **dynamic))
        run["dynamic_seconds"] = time.perf_counter() - began
    asked = GenerationInput(temperature=0.8, max_tokens=400, seed=seed)
    run["sample"] = loaded.predict([asked])[0].completions[0].text
    run["tokens"] = loaded.task.tokenizer.size
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="seeds trained at once, the threads shared out")
    parser.add_argument("--dynamic", type=float, nargs=3, metavar=("RATE", "DECAY", "STEPS"),
                        help="also evaluate dynamically, with options chosen elsewhere")  # fmt: skip
    arguments = parser.parse_args()

    import record  # takes the commit: before anything is measured, and not in every process

    from pipelines.baselines import run_baseline

    connect()  # makes the tracking database, which two processes cannot do at once
    rate, decay, steps = arguments.dynamic or (0.0, 0.0, 0)
    dynamic = {"learning_rate": rate, "decay": decay, "steps": int(steps)} if arguments.dynamic else {}
    threads = max(1, torch.get_num_threads() // arguments.jobs)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(run_seed, arguments.config, arguments.overrides, seed, dynamic, threads)
                   for seed in arguments.seeds]  # fmt: skip
        runs = [one.result() for one in waiting]
    resolved = config.load(arguments.config, arguments.overrides, sections=SECTIONS)
    splits = SOURCES.build(resolved["data"])
    tokens, parameters = ({run.pop(name) for run in runs}.pop() for name in ("tokens", "parameters"))
    path = record.write(
        f"language-model-{arguments.config.stem}",
        {
            "definition": "nats per token and bits per character of the whole split reported, each token after at "
            "least 512 of the tokens before it; seconds are those of the training epochs, whole_seconds those of "
            "everything from reading the data to the bundle",
            "reported": reported(splits),
            "config": str(arguments.config),
            "overrides": arguments.overrides,
            "data": splits.name,
            "characters": {name: sum(len(passage.text) for passage in getattr(splits, name))
                           for name in ("train", "validation", "test")},
            "digests": splits.digests(),
            "tokens": tokens,
            "parameters": parameters,
            "limit_nats": math.log(tokens),
            "runs": runs,
            "dynamic_options": dynamic,
            "baseline": run_baseline("kneser-ney", TASKS.build(resolved["task"]), splits).record(),
        },
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

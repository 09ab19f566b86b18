"""Quality of translation configs over several seeds, with two simple methods on the same splits beside them.

    python benchmarks/translation.py configs/translation/multi30k-lstm.yaml --seeds 1 2 --jobs 2 \
        --beside configs/translation/multi30k-none.yaml

Weights are chosen by validation BLEU; the test split is read once per run. All figures are of beam search as the
config says, whose size is reported. With several configs BLEU by sentence length is drawn side by side. Runs are
logged to MLflow like any other, but not registered.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch

from pipelines.figures import bleu_by_length
from pipelines.options import SECTIONS
from pipelines.run import train
from pipelines.tracking import source_tags
from seqapp import bundle, config
from seqapp.data.pairs import SentencePair
from seqapp.data.splits import SOURCES, Splits
from seqapp.references import connect
from seqapp.tasks import TASKS
from seqapp.tasks.translation import Translation
from seqapp.translation import TranslationInput
from seqapp.translation_scores import Translations

PICTURES = Path(__file__).parent.parent / "docs" / "images"
SHOWN = 12
"""Test sentences shown beside their translations."""


def run_seed(path: Path, overrides: list[str], seed: int, threads: int, keep: Path | None) -> dict[str, Any]:
    """One training and what it reaches; one that was kept, of the same config and seed, is not done again."""
    resolved = config.load(path, [*overrides, f"train.seed={seed}"], sections=SECTIONS)
    kept = None if keep is None else keep / f"{path.stem}-{seed}.json"
    if kept is not None and kept.is_file():
        run: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if run.pop("config") == resolved:
            return run
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {path.stem} {seed}: %(message)s", datefmt="%H:%M:%S")
    began, worked = time.perf_counter(), time.process_time()
    trained = train(path, [*overrides, f"train.seed={seed}"], register=False, progress=False)
    measured = json.loads((trained.bundle / "metrics.json").read_text(encoding="utf-8"))
    run = {
        "seed": seed,
        "commit": source_tags().get("git_commit"),
        "threads": threads,
        "seconds": trained.seconds,
        "whole_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "scores": trained.scores,
        "by_length": measured["translation"]["test"]["by_length"],
        "definitions": measured["translation"]["test"]["definitions"],
        "parameters": trained.parameters,
        "bundle": str(trained.bundle.resolve()),
    }
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({**run, "config": resolved}), encoding="utf-8")
    return run


def together(bundles: list[str], splits: Splits[SentencePair]) -> dict[str, Any]:
    """The test scores of several bundles that answer as one, and some translations."""
    loaded = [bundle.load(Path(path)) for path in bundles]
    task = cast(Translation, loaded[0].task)
    found = {}
    inputs = [TranslationInput(text=pair.source) for pair in splits.test]
    outputs = task.translate([one.model for one in loaded], inputs)
    said = tuple(output.text for output in outputs)
    scored = Translations(
        tuple(pair.source for pair in splits.test), said, tuple(pair.target for pair in splits.test), task.languages
    )
    found["scores"] = scored.scores()
    found["by_length"] = [asdict(row) for row in scored.by_length()]
    places = [place * len(said) // SHOWN for place in range(SHOWN)]
    found["translations"] = [
        {"source": scored.sources[place], "said": said[place], "right": scored.references[place]} for place in places
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="configs of which the first seed is enough")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all configs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, the threads shared out")
    parser.add_argument("--keep", type=Path, help="folder of finished runs, which are not done again")
    parser.add_argument("--name", help="of the result; by default that of the first config")
    arguments = parser.parse_args()

    import record  # takes the commit: before anything is measured, and not in every process

    from pipelines.baselines import BASELINES, run_baseline
    from seqapp.translation_scores import LengthRow

    connect()  # makes the tracking database, which two processes cannot do at once
    threads = max(1, torch.get_num_threads() // arguments.jobs)
    overrides: list[str] = arguments.set
    planned = dict.fromkeys(arguments.configs, arguments.seeds)
    planned |= dict.fromkeys(arguments.beside, arguments.seeds[:1])
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {
            path.stem: [pool.submit(run_seed, path, overrides, seed, threads, arguments.keep) for seed in seeds]
            for path, seeds in planned.items()
        }
        runs = {name: [one.result() for one in seeds] for name, seeds in waiting.items()}
    resolved = [config.load(path, overrides, sections=SECTIONS) for path in planned]
    splits = SOURCES.build(resolved[0]["data"])
    models = {}
    for name, part in zip(runs, resolved, strict=True):
        seeds = runs[name]
        paths = [run["bundle"] for run in seeds]
        definitions, parameters = (seeds[0][key] for key in ("definitions", "parameters"))
        models[name] = {
            "config": part,
            "parameters": parameters,
            "runs": [
                {key: run[key] for key in run if key not in ("definitions", "parameters", "bundle")} for run in seeds
            ],
            "ensemble": together(paths, splits),
        }
    if len(models) > 1:
        rows = {name: [LengthRow(**row) for row in model["runs"][0]["by_length"]] for name, model in models.items()}
        picture = bleu_by_length(
            rows, f"{splits.name}, test, seed {arguments.seeds[0]}, beam {resolved[0]['task']['beam_size']}"
        )
        picture.savefig(PICTURES / f"bleu-by-length-{arguments.name or arguments.configs[0].stem}.png", dpi=110)
    task = TASKS.build(resolved[0]["task"])
    methods = [name for name, method in BASELINES.items() if method.example_type is SentencePair]
    path = record.write(
        f"translation-{arguments.name or arguments.configs[0].stem}",
        {
            "definitions": definitions,
            "reported": "test scores of whole translations by beam search of the size of the config; seconds are those "
            "of the training epochs, whole_seconds those of everything from reading the data to the bundle, and "
            "cpu_seconds the processor time of that, which is what one thread takes where nothing else runs; the "
            "ensemble is all seeds of a config answering as one",
            "data": splits.name,
            "sizes": {name: len(examples) for name, examples in splits.all().items()},
            "digests": splits.digests(),
            "models": models,
            "baselines": [run_baseline(name, task, splits).record() for name in methods],
        },
    )
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

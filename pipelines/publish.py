"""What a finished run leaves for people: pictures, figures, definitions, the bundle, and a version in the registry."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipelines import figures, patience, promotion, tracking
from pipelines.calibrate import Calibration
from pipelines.card import intervals
from pipelines.outcomes import log_outcomes
from seqapp.metrics import Confusion, Metric
from seqapp.tasks import Task
from seqapp.tasks.translation import Translation
from seqapp.translation_scores import Translations

log = logging.getLogger(__name__)


def publish(
    run_id: str,
    directory: Path,
    task: Task[Any, Any],
    history: Mapping[str, Sequence[tuple[int, float]]],
    totals: Mapping[str, Mapping[str, Metric]],
    scores: Mapping[str, Mapping[str, float]],
    example: Mapping[str, Any],
    *,
    sizes: Mapping[str, int],
    parameters: int,
    seconds: float,
    costs: Mapping[str, float],
    registered_name: str | None,
    digest: str,
    calibration: Calibration | None = None,
) -> promotion.Registered | None:
    """Log what a trained model is and how good, and register it.

    Args:
        run_id: of the MLflow run.
        directory: the bundle.
        task: prepared.
        history: metric -> (epoch, value) pairs.
        totals: split -> its metrics.
        scores: split -> name -> value.
        example: one input, as a record.
        sizes: split -> number of examples.
        parameters: trained numbers in the model.
        seconds: wall time of the training.
        costs: further figures of the whole run, such as ``latency_ms``.
        registered_name: in the registry; None registers nothing.
        digest: of the validation data.
        calibration: of a task whose answers are probabilities of classes.
    """
    client = patience.client()
    title = client.get_run(run_id).info.run_name or run_id
    client.log_figure(run_id, figures.learning_curves(history, title, task.titles, ("nll", task.selection[0])),
                      "learning_curves.png")  # fmt: skip
    name, direction = task.selection
    scale = "share" if name in task.shares else "number"
    if name in intervals(task, totals["validation"], sizes["validation"]):
        scale = "share of examples"
    client.set_tag(run_id, "scale", scale)
    client.set_tag(run_id, "metric_definition", task.definition_of(scores))
    size = sum(file.stat().st_size for file in directory.iterdir())
    logged: dict[str, float] = {"parameters": parameters, "seconds": seconds, "bundle_bytes": size, **costs}
    for split, metric in totals.items():
        prefix = "best_validation" if split == "validation" else split
        logged |= {f"{prefix}/{key}": value for key, value in scores[split].items()}
        logged[f"{split}/examples"] = sizes[split]
        for confusion in (found for found in metric.values() if isinstance(found, Confusion)):
            picture = figures.confusion_matrix(confusion, f"{title}, {split}")
            client.log_figure(run_id, picture, f"confusion_{split}.png")
        for found in (found for found in metric.values() if isinstance(found, Translations)):
            definitions = _definitions(task, found)
            picture = figures.bleu_by_length({split: found.by_length()}, f"{title}, {split}, {definitions['search']}")
            client.log_figure(run_id, picture, f"bleu_by_length_{split}.png")
            client.log_text(run_id, _side_by_side(found), f"translations_{split}.tsv")
            client.log_dict(run_id, definitions, "definitions.json")
    if calibration is not None:
        logged |= {f"calibration/{key}": value for key, value in calibration.figures().items()}
        for split, picture in reliabilities(calibration, title).items():
            client.log_figure(run_id, picture, f"reliability_{split}.png")
    log_outcomes(run_id, totals)
    client.log_text(run_id, (directory / "README.md").read_text(encoding="utf-8"), "model_card.md")
    tags = client.get_run(run_id).data.tags
    said = (f"{headline(task, scores, sizes)} The network `{tags.get('network', '')}` with {parameters:,} parameters, "
            f"trained for {seconds:.0f} s on {tags.get('dataset', '')}. The artifact `model_card.md` tells the rest."
            )  # fmt: skip
    client.set_tag(run_id, "mlflow.note.content", said)
    uri = tracking.log_bundle(run_id, directory, task, example)
    tracking.log_metrics(run_id, logged, model_id=uri.rpartition("/")[2])
    if registered_name is None:
        return None
    registered = promotion.register(
        run_id, uri, registered_name, score=(name, scores["validation"][name], direction), validation_digest=digest
    )
    log.info(
        "registered %s version %s, %s: %s",
        registered.name, registered.version, registered.rank, registered.reason,
    )  # fmt: skip
    return registered


def reliabilities(calibration: Calibration, title: str) -> dict[str, Figure]:
    """Split -> its reliability diagram, before and after where there is a temperature."""
    found = {}
    for split, before in calibration.before.items():
        parts = {"probabilities as they are": before}
        if calibration.temperature is not None:
            parts = {"before, T = 1": before, f"after, T = {calibration.temperature:.4g}": calibration.after[split]}
        found[split] = figures.reliability_diagram(parts, f"{title}, {split}")
    return found


def headline(task: Task[Any, Any], scores: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> str:
    """The score of each split, as the page of a run says first; Markdown."""
    name = task.selection[0]
    told = [f"{split} {figures.figure(part[name], share=name in task.shares)} ({sizes[split]:,} {task.unit})"
            for split, part in scores.items()]  # fmt: skip
    return f"**{task.titles.get(name, name)}: {', '.join(told)}.**"


def confusions(totals: Mapping[str, Mapping[str, Metric]]) -> dict[str, Any]:
    """Split -> the confusion matrix as records, where there is one."""
    return {
        split: metric.records()
        for split, total in totals.items()
        for metric in total.values()
        if isinstance(metric, Confusion)
    }


def _definitions(task: Task[Any, Any], found: Translations) -> dict[str, str]:
    """What each score is, and by which search the translations were found."""
    assert isinstance(task, Translation)
    return {**found.details(), "search": f"beam of {task.beam_size}, length penalty {task.length_penalty:g}"}


def translations(task: Task[Any, Any], totals: Mapping[str, Mapping[str, Metric]]) -> dict[str, Any]:
    """Split -> how scores of translations are defined, and BLEU by length, where there are translations."""
    return {
        split: {"definitions": _definitions(task, metric), "by_length": [asdict(row) for row in metric.by_length()]}
        for split, total in totals.items()
        for metric in total.values()
        if isinstance(metric, Translations)
    }


def _side_by_side(found: Translations) -> str:
    """Source, translation and reference of each sentence, a line each."""
    rows = zip(found.sources, found.hypotheses, found.references, strict=True)
    return "".join("\t".join(" ".join(text.split()) for text in row) + "\n" for row in rows)

"""What MLflow's page of an experiment says and shows, as tags of the experiment that its pages read."""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

NAME = "what to keep"
"""Of the saved view."""


def experiment_tags(experiment: str, tags: Mapping[str, str]) -> dict[str, str]:
    """A description, and for runs with a score a saved view that has it and its costs as columns, the best run first.

    MLflow does not document how it keeps a view; this is what version 3.17 writes. Another version that reads it
    otherwise shows the list without the view.

    Args:
        experiment: its name, a task.
        tags: of its first run: ``metric``, and ``direction`` "max" or "min".
    """
    note = (f"Runs of the task **{experiment}**: `seqapp train` makes them, `seqapp compare {experiment}` says which "
            "to keep, `seqapp reproduce RUN_ID` repeats one.")  # fmt: skip
    told = {"mlflow.experimentKind": "custom_model_development"}
    if metric := tags.get("metric"):
        note += f" *Views, {NAME}* shows scores and costs side by side."
        shown = {"name": NAME, "createdAt": int(1000 * time.time()), "state": _packed(_state(metric, tags))}
        told["mlflow.sharedViewState.seqapp"] = json.dumps(shown)
    return {MLFLOW_RUN_NOTE: note, **told}


def _state(metric: str, tags: Mapping[str, str]) -> dict[str, Any]:
    chosen = f"metrics.`best_validation/{metric}`"
    figures = (f"test/{metric}", "parameters", "seconds", "train/tokens_per_second", "latency_ms", "bundle_bytes",
               "peak_memory_bytes")  # fmt: skip
    columns = ["tags.`network`", "tags.`dataset`", chosen, *(f"metrics.`{name}`" for name in figures),
               "tags.`validation_digest`", "attributes.`Models`"]  # fmt: skip
    return {
        "searchFilter": "", "orderByKey": chosen, "orderByAsc": tags.get("direction") == "min",
        "startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": columns, "columnOrder": columns, "columnWidths": {}, "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False, "runListHidden": False, "isAccordionReordered": False,
        "useGroupedValuesInCharts": True, "hideEmptyCharts": True, "groupBy": None, "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }  # fmt: skip


def _packed(state: Mapping[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()

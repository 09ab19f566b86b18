"""How good a model is on encoded items."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from pipelines.data import Data
from pipelines.module import Reader
from seqapp import metrics
from seqapp.data.batching import LengthBuckets
from seqapp.metrics import Metric
from seqapp.outcomes import Outcomes
from seqapp.tasks import Task


def measure(task: Task[Any, Any], model: nn.Module, data: Data, items: Any) -> dict[str, Metric]:
    """The metrics of ``model`` on encoded ``items``, as sums and counts; outcomes stand in the order of the items."""
    model.eval()
    totals: dict[str, Metric] = {}
    reader = Reader(task, model, carried=task.streams)
    batches = data.evaluation_dataloader(items)
    with torch.inference_mode():
        for batch in batches:
            totals = metrics.add(totals, {**reader(batch)[1], **task.judge(model, batch)})
    if isinstance(outcomes := totals.get("outcomes"), Outcomes):
        sampler = getattr(batches, "sampler", None)
        order = list(chain(*sampler.batches())) if isinstance(sampler, LengthBuckets) else None
        totals["outcomes"] = outcomes.ordered(order)
    return totals

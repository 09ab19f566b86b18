"""How good a model is on encoded items."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.data import Data
from pipelines.module import Reader
from seqapp import metrics
from seqapp.metrics import Metric
from seqapp.tasks import Task


def measure(task: Task[Any, Any], model: nn.Module, data: Data, items: Any) -> dict[str, Metric]:
    """The metrics of ``model`` on encoded ``items``, as sums and counts."""
    model.eval()
    totals: dict[str, Metric] = {}
    reader = Reader(task, model, carried=task.streams)
    with torch.inference_mode():
        for batch in data.evaluation_dataloader(items):
            totals = metrics.add(totals, {**reader(batch)[1], **task.judge(model, batch)})
    return totals

"""BentoML with adaptive batching: `FOLDER=... WORKERS=1 bentoml serve serve_bentoml:Sentiment`."""

from __future__ import annotations

import os
from typing import Any

import bentoml
from model import Predictor

WORKERS = int(os.environ["WORKERS"])


@bentoml.service(
    workers=WORKERS,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Sentiment:
    """One list of texts a request; lists of several requests are one forward pass."""

    def __init__(self) -> None:
        self.predictor = Predictor(os.environ["FOLDER"])

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, inputs: list[str]) -> list[dict[str, Any]]:
        return self.predictor(inputs)

"""FastAPI with the model in the handler: `FOLDER=... uvicorn serve_fastapi:app`."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from model import Predictor
from pydantic import BaseModel

predictor = Predictor(os.environ["FOLDER"])
app = FastAPI()


class Request(BaseModel):
    """One text."""

    inputs: str


class Answer(BaseModel):
    """Its label."""

    label: str
    score: float


@app.post("/predict", response_model=Answer)
async def predict(request: Request) -> Any:
    """In the event loop, which is faster here than a thread of the pool."""
    return predictor([request.inputs])[0]

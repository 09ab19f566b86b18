"""FastAPI with a bundle in the handler: `FOLDER=... uvicorn serve_bundle:app`."""

from __future__ import annotations

import os
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from seqapp import bundle
from seqapp.tasks.sentiment import SentimentInput

torch.set_num_threads(int(os.environ.get("THREADS", "1")))
loaded = bundle.load(os.environ["FOLDER"])
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
    """In the event loop, as `serve_fastapi.py`."""
    (output,) = loaded.predict([SentimentInput(text=request.inputs)])
    return {"label": output.label, "score": output.score}

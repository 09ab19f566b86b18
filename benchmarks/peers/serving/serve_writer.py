"""Generation for one request at a time, streamed: `FOLDER=... uvicorn serve_writer:app`.

The same model and sampler as ours; who comes while a text is written waits until it has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from seqapp import bundle
from seqapp.completion import GenerationInput

torch.set_num_threads(int(os.environ.get("THREADS", "1")))
loaded = bundle.load(os.environ["FOLDER"])
app = FastAPI()
turn = asyncio.Lock()


class Request(BaseModel):
    """What `benchmarks/serve.py` asks."""

    prompt: str
    max_tokens: int
    stream: bool
    seed: int
    temperature: float


@app.get("/readyz")
async def ready() -> None:
    """The bundle was loaded before."""


@app.post("/v1/completions")
async def complete(request: Request) -> StreamingResponse:
    """The pieces of one text."""
    task: Any = loaded.task
    given = GenerationInput(
        prompt=request.prompt, max_tokens=request.max_tokens, seed=request.seed, temperature=request.temperature
    )

    async def events() -> AsyncIterator[str]:
        async with turn:
            pieces = task.stream(loaded.model, given)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield f"data: {json.dumps({'choices': [{'text': piece.text}]})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")

"""Probes for whatever watches the process, and the figures that Prometheus collects."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import State

from serving.models import Models
from serving.problems import ProblemError, documented

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Models answer."""

    status: Literal["ready"] = "ready"
    models: list[str] = Field(description="ids of the live models")
    refused: dict[str, str] = Field(description="models that were asked for and did not go live, and why not")
    kept: dict[str, str] = Field(
        default={}, description="models that answer in an older version than was asked for, and why"
    )
    cached: dict[str, str] = Field(
        default={}, description="models of a tracking server that does not answer, and when it last did"
    )


def readiness(state: State) -> Ready:
    """Whether requests should be sent here.

    Args:
        state: of the application.

    Raises:
        ProblemError: ``not-ready``, while the server stops and where no model answers.
    """
    if state.stopping:
        raise ProblemError("not-ready", "the server is stopping", headers={"Retry-After": "5"})
    models: Models = state.models
    answering = [model.id for model in models if model.engine.alive]
    if not answering:
        raise ProblemError("not-ready", "no model is live", headers={"Retry-After": "5"})
    return Ready(
        models=answering,
        refused={one.reference: one.reason for one in models.refused},
        kept={one.reference: one.reason for one in models.kept},
        cached={model.id: model.since for model in models if model.since},
    )


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    """Restart the process if this does not answer."""
    return Alive()


@router.get("/readyz", summary="Can it answer?", responses=documented("not-ready"))
async def readyz(request: Request) -> Ready:
    """Send requests only while this is 200."""
    return readiness(request.app.state)


@router.get(
    "/metrics",
    summary="What has been counted?",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus' text format, or OpenMetrics where that is accepted",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
)
def metrics(request: Request) -> Response:
    """Requests, waits, batches, tokens and live models; of all workers, whichever answers."""
    content, media_type = request.app.state.metrics.exposition(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type})

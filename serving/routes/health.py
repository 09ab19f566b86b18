"""Probes for whatever watches the process."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from serving.problems import ProblemError, documented
from serving.routes import LiveModels

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Models answer."""

    status: Literal["ready"] = "ready"
    models: list[str] = Field(description="ids of the live models")
    refused: dict[str, str] = Field(description="models that were asked for and did not go live, and why not")


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    """Restart the process if this does not answer."""
    return Alive()


@router.get("/readyz", summary="Can it answer?", responses=documented("not-ready"))
async def readyz(models: LiveModels) -> Ready:
    """Send requests only while this is 200."""
    if not len(models):
        raise ProblemError("not-ready", "no model is live", headers={"Retry-After": "5"})
    return Ready(models=[model.id for model in models], refused={one.reference: one.reason for one in models.refused})

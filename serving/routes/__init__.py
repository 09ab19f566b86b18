"""One router per subject, and what their handlers ask for.

A module whose routes ask the models of a task names it in ``TASK``.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from serving.models import Models
from serving.settings import Settings


def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


LiveModels = Annotated[Models, Depends(_models)]
ServerSettings = Annotated[Settings, Depends(_settings)]
TIMING: dict[str, Any] = {
    "Server-Timing": {
        "description": "milliseconds: `queue;dur=0.1, model;dur=2.5`",
        "schema": {"type": "string"},
    }
}
"""The OpenAPI ``headers`` of an answer that tells how long it took."""

"""What is live."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from seqapp.tasks.generation import Generation
from serving.models import LiveModel
from serving.problems import documented
from serving.routes import LiveModels

router = APIRouter(tags=["models"])


class ModelInfo(BaseModel):
    """One live model. ``object``, ``created`` and ``owned_by`` are there for clients that know OpenAI's list."""

    id: str = Field(description="what a request says in `model`", examples=["sentiment-bundled"])
    object: Literal["model"] = "model"
    created: int = Field(description="`loaded_at` in seconds since 1970")
    owned_by: Literal["seqapp"] = "seqapp"
    task: str = Field(examples=["sentiment"])
    version: str | None = Field(description="version in the model registry, if it came from there", examples=["3"])
    alias: str | None = Field(description="alias it was found by, if any", examples=["champion"])
    loaded_at: datetime
    default: bool = Field(description="it answers requests of its task that name no model")
    parameters: int = Field(description="number of weights")
    metrics: dict[str, dict[str, float]] = Field(
        description="figures per split", examples=[{"test": {"accuracy": 0.81, "nll": 0.61}}]
    )
    conditions: list[str] = Field(
        default=[], description="the classes that a generated text may depend on", examples=[["English", "Greek"]]
    )
    features: int = Field(default=0, description="how many numbers a generated text depends on")
    card: str = Field(description="link to the model card", examples=["/v1/models/sentiment-bundled/card"])


class ModelList(BaseModel):
    """The live models; the first of a task is its default."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


@router.get("/v1/models", summary="Which models are live?")
async def list_models(request: Request, models: LiveModels) -> ModelList:
    """Every live model with its figures and a link to its card."""
    defaults = {task: models.find(task).id for task in {model.task for model in models}}
    prefix = request.scope.get("root_path", "")
    return ModelList(data=[_describe(model, defaults[model.task] == model.id, prefix) for model in models])


@router.get(
    "/v1/models/{model_id:path}/card",
    summary="What is known about a model?",
    response_class=Response,
    responses={
        200: {
            "description": "the model card",
            "content": {"text/markdown": {"schema": {"type": "string"}, "example": "# sentiment-bundled\n"}},
        },
        **documented("unknown-model"),
    },
)
async def model_card(model_id: str, models: LiveModels) -> Response:
    """The model card, Markdown: data, figures, limits, origin."""
    return Response(models.get(model_id).card, media_type="text/markdown; charset=utf-8")


def _describe(model: LiveModel, default: bool, prefix: str) -> ModelInfo:
    conditional = model.bundle.task if isinstance(model.bundle.task, Generation) else None
    return ModelInfo(
        id=model.id,
        created=int(model.loaded_at.timestamp()),
        task=model.task,
        version=model.reference.version or None,
        alias=model.reference.alias or None,
        loaded_at=model.loaded_at,
        default=default,
        parameters=model.bundle.parameters,
        metrics=model.scores,
        conditions=conditional.conditions.names if conditional else [],
        features=conditional.features if conditional else 0,
        card=f"{prefix}/v1/models/{quote(model.id)}/card",
    )

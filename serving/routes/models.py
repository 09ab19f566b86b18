"""What is live, and what should be."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from seqapp.tasks.generation import Generation
from serving.models import LiveModel, Place
from serving.problems import MOST_ERRORS, FieldError, ProblemError, Wire, documented
from serving.reload import Reloaded, Reloader
from serving.routes import Deadline, LiveModels

router = APIRouter(tags=["models"])


class ShadowInfo(BaseModel):
    """What is asked what live models are asked, and answers nobody."""

    id: str | None = Field(description="null if it is not live", examples=["sentiment/4"])
    version: str | None = Field(examples=["4"])
    compared: int = Field(description="requests that it has answered, too")
    agreed: int = Field(description="times that it gave the same labels or texts")
    dropped: int = Field(description="requests that were too many to ask it, or that it failed")
    reason: str = Field(default="", description="why what was asked for is not live")


class ModelInfo(BaseModel):
    """One live model. ``object``, ``created`` and ``owned_by`` are there for clients that know OpenAI's list."""

    id: str = Field(description="what a request says in `model`", examples=["sentiment-bundled"])
    object: Literal["model"] = "model"
    created: int = Field(description="`loaded_at` in seconds since 1970")
    owned_by: Literal["seqapp"] = "seqapp"
    task: str = Field(examples=["sentiment"])
    version: str = Field(
        description="version in the model registry, or the beginning of the bundle's SHA-256", examples=["3"]
    )
    alias: str | None = Field(description="alias it was found by, if any", examples=["champion"])
    deployment: str = Field(
        description="what a request says in `model` to get any of its versions", examples=["sentiment-bundled"]
    )
    weight: float = Field(description="its share of the requests that ask for any version", examples=[1.0])
    shadow: ShadowInfo | None = Field(default=None, description="what is asked the same, to compare")
    state: Literal["live", "kept"] = Field(
        description="kept: what was asked for since is not live, so that this one still answers"
    )
    reason: str = Field(default="", description="why it was kept")
    source: str = Field(
        description="`directory`, `registry`, or `cache since` the time when the registry last answered",
        examples=["registry"],
    )
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
    """The live models; the first deployment of a task is its default."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class ReloadRequest(Wire):
    """What to reload."""

    model: str | None = Field(
        default=None, description="a model, a deployment or a refused reference; by default all of them"
    )


class ReloadedModel(BaseModel):
    """What a reload did for one version that was asked for."""

    model: str = Field(examples=["sentiment-bundled"])
    reference: str = Field(description="what was asked for", examples=["sentiment-bundled@champion"])
    outcome: Literal["unchanged", "swapped"]
    before: str | None = Field(description="the version that was live, if one was", examples=["3"])
    after: str | None = Field(description="the version that is live", examples=["4"])


class ReloadAnswer(BaseModel):
    """What a reload did; every model that was asked for is live."""

    object: Literal["list"] = "list"
    data: list[ReloadedModel]
    workers: int = Field(description="how many processes have done so")


@router.get("/v1/models", summary="Which models are live?")
async def list_models(request: Request, models: LiveModels) -> ModelList:
    """Every live model with its figures and a link to its card."""
    prefix = request.scope.get("root_path", "")
    return ModelList(
        data=[
            _describe(place, place.live, models.weight(place.live), models.default(place.live.task), prefix)
            for deployed in models.deployments
            for place in deployed.places
            if place.live
        ]
    )


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


@router.get(
    "/v1/models/{model_id:path}",
    summary="What is a model?",
    responses={
        **documented("unknown-model", path="/v1/models/name"),
        "default": {
            **documented("internal-error", path="/v1/models/name")[500],
            "description": "any other error, in the shape that OpenAI's clients read",
        },
    },
)
async def model(model_id: str, request: Request, models: LiveModels) -> ModelInfo:
    """As the list tells it; of a deployment of several versions one of them."""
    if model_id == "reload":  # this path fits, too
        raise HTTPException(405, headers={"Allow": "POST"})
    found = models.get(model_id)
    place = next(place for place in models.places if place.live is found)
    prefix = request.scope.get("root_path", "")
    return _describe(place, found, models.weight(found), models.default(found.task), prefix)


_REQUESTS: dict[str, Any] = {
    "everything": {"value": {}},
    "one model": {"value": {"model": "sentiment-bundled"}},
}


@router.post(
    "/v1/models/reload",
    summary="Bring new versions to life",
    responses=documented(
        "malformed-body",
        "unknown-model",
        "reload-failed",
        "body-too-large",
        "unsupported-media-type",
        "invalid-request",
        "internal-error",
        "deadline-exceeded",
        path="/v1/models/reload",
        wrong=("model", "Input should be a valid string"),
    ),
)
async def reload(
    request: Request,
    deadline: Deadline,
    asked: Annotated[ReloadRequest | None, Body(openapi_examples=_REQUESTS)] = None,
) -> ReloadAnswer:
    """Look what is asked for now, and let it answer once it is loaded, warm, and gives its golden answers.

    If one cannot go live, the answer is `reload-failed`, with the reason for each in `errors`; the others are reloaded
    all the same, and what was live before stays. A reload that takes longer than its answer may goes on.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in request.headers and given != "application/json":
        # What any page of the web could send without asking (Fetch, "simple request").
        raise ProblemError("unsupported-media-type", "a page sends 'Content-Type: application/json'")
    reloader: Reloader = request.app.state.reloader
    done = await reloader.reload(asked.model if asked else None, deadline)
    kept = [one for one in done.outcomes if one.outcome == "kept"]
    if kept or done.missing:
        raise ProblemError("reload-failed", _told(done), [
            FieldError(field=one.model, detail=_stays(one.before, one.reason)) for one in kept[:MOST_ERRORS]
        ])  # fmt: skip
    return ReloadAnswer(
        data=[
            ReloadedModel(
                model=one.model,
                reference=one.reference,
                outcome="swapped" if one.outcome == "swapped" else "unchanged",
                before=one.before,
                after=one.after,
            )
            for one in done.outcomes
        ],
        workers=done.workers,
    )


def _told(done: Reloaded) -> str:
    counts = {kind: sum(one.outcome == kind for one in done.outcomes) for kind in ("kept", "swapped", "unchanged")}
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    first = next((f"; {one.model}: {_stays(one.before, one.reason)}" for one in done.outcomes if one.outcome == "kept"),
                 "")  # fmt: skip
    silent = ", ".join(map(str, done.missing))
    return (told or "nothing") + first + (f"; no word yet from the worker {silent}" if silent else "")


def _stays(before: str | None, reason: str) -> str:
    return f"{reason}; {'nothing answers in its place' if before is None else f'version {before} stays'}"


def _describe(place: Place, model: LiveModel, weight: float, default: str | None, prefix: str) -> ModelInfo:
    conditional = model.bundle.task if isinstance(model.bundle.task, Generation) else None
    shadow = place.deployed.shadow
    return ModelInfo(
        id=model.id,
        created=int(model.loaded_at.timestamp()),
        task=model.task,
        version=model.version,
        alias=model.reference.alias or None,
        deployment=place.deployed.name or model.id,
        weight=round(weight, 6),
        shadow=_shadow(shadow) if shadow else None,
        state="kept" if place.reason else "live",
        reason=place.reason,
        source=model.source,
        loaded_at=model.loaded_at,
        default=place.deployed.name == default,
        parameters=model.bundle.parameters,
        metrics=model.scores,
        conditions=conditional.conditions.names if conditional else [],
        features=conditional.features if conditional else 0,
        card=f"{prefix}/v1/models/{quote(model.id)}/card",
    )


def _shadow(place: Place) -> ShadowInfo:
    shadow, model = place.shadow, place.live
    assert shadow is not None
    return ShadowInfo(
        id=model.id if model else None,
        version=model.version if model else None,
        compared=shadow.compared,
        agreed=shadow.agreed,
        dropped=shadow.dropped,
        reason=place.reason,
    )

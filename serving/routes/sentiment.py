"""``POST /v1/sentiment``: which label fits a text."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from seqapp.data.tokenizers import clean
from seqapp.tasks import InputError
from seqapp.tasks.sentiment import SentimentInput, SentimentOutput, TokenWeight
from serving.problems import Wire, documented, fields, texts
from serving.routes import ENGINE_PROBLEMS, TIMING, Deadline, LiveModels, ServerSettings, awaited, written

TASK = "sentiment"
"""The task whose models these routes ask."""

router = APIRouter(tags=[TASK])


class SentimentParameters(Wire):
    """How to answer."""

    model_config = ConfigDict(frozen=True)  # a default that cannot change is not copied for each request

    top_k: int | None = Field(default=None, ge=1, le=1000, description="only the k best labels; by default all of them")


class SentimentRequest(Wire):
    """One text or several."""

    inputs: str | list[str] = Field(description="a text, or a list of texts; none may be empty")
    parameters: SentimentParameters = Field(default=SentimentParameters(), description="how to answer")
    explain: bool = Field(default=False, description="also say how much each token speaks for the best label")
    model: str | None = Field(default=None, description="`id` of a live model; by default the first sentiment model")

    @field_validator("inputs", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return texts(value)


class LabelScore(BaseModel):
    """One label of a text."""

    label: str
    score: float = Field(description="probability of the label")
    tokens: list[TokenWeight] | None = Field(
        default=None,
        description="with `explain`, and on the best label only: offsets count Unicode code points of the input",
    )


_ONE = TypeAdapter(list[LabelScore])
_MANY = TypeAdapter(list[list[LabelScore]])

_REQUESTS: dict[str, Any] = {
    "one text": {"value": {"inputs": "The staff were lovely and the soup was hot."}},
    "several texts": {"value": {"inputs": ["Wonderful.", "It broke after a day."], "parameters": {"top_k": 1}}},
    "explained": {"value": {"inputs": "A lovely garden.", "explain": True}},
}
_LOVELY = [
    {"text": "A", "start": 0, "end": 1, "weight": 0.1},
    {"text": "lovely", "start": 2, "end": 8, "weight": 3.4},
    {"text": "garden", "start": 9, "end": 15, "weight": 0.2},
    {"text": ".", "start": 15, "end": 16, "weight": -0.1},
]
_ANSWERS: dict[str, Any] = {
    "one text": {"value": [{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}]},
    "several texts": {
        "value": [[{"label": "positive", "score": 0.99}], [{"label": "negative", "score": 0.97}]],
    },
    "explained": {
        "value": [{"label": "positive", "score": 0.99, "tokens": _LOVELY}, {"label": "negative", "score": 0.01}]
    },
}


@router.post(
    "/v1/sentiment",
    summary="Which label fits a text?",
    response_model=list[LabelScore] | list[list[LabelScore]],
    responses={
        200: {
            "description": "for one text its labels, the most probable first; for a list of texts one such list each",
            "content": {"application/json": {"examples": _ANSWERS}},
            "headers": TIMING,
        },
        **documented(
            "malformed-body",
            "unknown-model",
            "body-too-large",
            "unsupported-media-type",
            "invalid-request",
            "internal-error",
            *ENGINE_PROBLEMS,
        ),
    },
)
async def sentiment(
    request: Annotated[SentimentRequest, Body(openapi_examples=_REQUESTS)],
    http: Request,
    models: LiveModels,
    settings: ServerSettings,
    deadline: Deadline,
) -> Response:
    """The labels of each text, the most probable first, each with its probability."""
    single = isinstance(request.inputs, str)
    given = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    if len(given) > settings.max_items:
        raise fields(("inputs", f"{len(given)} texts are too many; at most {settings.max_items} fit in one request"))
    model = models.find(TASK, request.model)

    def place(index: int) -> str:
        return "inputs" if single else f"inputs[{index}]"

    long = [index for index, text in enumerate(given) if len(text) > settings.max_characters]
    if long:
        most = settings.max_characters
        raise fields(*((place(index), f"{len(given[index])} characters; at most {most} fit") for index in long))
    inputs = [SentimentInput(text=clean(text), explain=request.explain) for text in given]
    try:
        answer = await awaited(http, model.predict(inputs, deadline))
    except InputError as error:
        raise fields(*((place(index), problem) for index, problem in error.problems.items())) from None

    def write() -> bytes:
        scored = [_ranked(output, request.parameters.top_k) for output in answer.outputs]
        return _ONE.dump_json(scored[0], exclude_none=True) if single else _MANY.dump_json(scored, exclude_none=True)

    content = await written(sum(len(output.tokens or "x") for output in answer.outputs), write)
    headers = {"Server-Timing": answer.timing, "X-Model-Version": model.version}
    return Response(content, media_type="application/json", headers=headers)


def _ranked(output: SentimentOutput, top_k: int | None) -> list[LabelScore]:
    ranked = sorted(output.scores.items(), key=lambda item: -item[1])[:top_k]
    return [
        LabelScore(label=label, score=score, tokens=output.tokens if label == output.label else None)
        for label, score in ranked
    ]

"""``POST /invocations``: what MLflow's scoring server answers, for its clients; and its ``/ping`` and ``/version``.

The shapes are those of ``mlflow.pyfunc.scoring_server`` (MLflow 3); the rows of an answer are those of the bundle that
``mlflow models serve`` serves.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping
from io import StringIO
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import to_json

from seqapp import __version__
from seqapp.tasks import InputError
from serving.models import LiveModel, Models, UnknownModel
from serving.problems import MOST_ERRORS, ProblemError, Wire, documented, fields, json_type, misfit, unknown_model
from serving.routes import ENGINE_PROBLEMS, TIMING, Deadline, LiveModels, ServerSettings, awaited, written
from serving.routes.health import readiness
from serving.routes.inputs import (
    CSV_MARKS,
    Where,
    body_of,
    check_limits,
    check_values,
    inputs_of,
    parse,
    request_body,
    unanswerable,
)

router = APIRouter(tags=["invocations"])
csv.field_size_limit(sys.maxsize)  # the size of the whole body is bounded


class Split(Wire):
    """A data frame, as ``DataFrame.to_dict("split")`` writes it."""

    columns: list[str] = Field(fail_fast=True, description="names of fields of the task's input")
    data: list[list[Any]] = Field(fail_fast=True, description="rows, each with a value for every column")
    index: list[Any] | None = Field(default=None, description="taken and not used")


class Invocation(Wire):
    """Inputs in one of four shapes, each an input of the model's task; null and NaN are as if left out."""

    dataframe_split: Split | None = None
    dataframe_records: list[dict[str, Any]] | None = Field(
        default=None, fail_fast=True, description="one object for each input"
    )
    instances: list[Any] | None = Field(default=None, description="objects, or the texts alone")
    inputs: dict[str, Any] | list[Any] | str | None = Field(
        default=None, description="a list for each field, or objects, or the texts alone, or one text"
    )
    params: dict[str, Any] | None = Field(
        default=None, description="fields of every input, before those of a row; `model` is the `id` of a live model"
    )

    @field_validator("inputs", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        if not isinstance(value, dict | list | str | None):
            raise misfit({"": f"an object, a list or a text fits, not {json_type(value)}"})
        return value

    @model_validator(mode="after")
    def _one_shape(self) -> Invocation:
        given = [name for name in SHAPES if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ValueError(
                f"has {told} of dataframe_split, dataframe_records, instances and inputs; exactly one fits"
            )
        return self


class Predictions(BaseModel):
    """An answer for each row, with the fields of the task's output."""

    predictions: list[dict[str, Any]]


SHAPES = ("dataframe_split", "dataframe_records", "instances", "inputs")
SCHEMAS = (Invocation,)
"""What the OpenAPI document must hold for bodies that routes read themselves."""

_REQUESTS: dict[str, Any] = {
    "records": {"value": {"dataframe_records": [{"text": "A lovely garden."}], "params": {"explain": False}}},
    "split": {"value": {"dataframe_split": {"columns": ["text"], "data": [["A lovely garden."], ["It broke."]]}}},
    "instances": {"value": {"instances": [{"text": "A lovely garden."}]}},
    "inputs": {"value": {"inputs": {"text": ["A lovely garden."]}}},
}
_POSITIVE = {"label": "positive", "score": 0.75, "scores": {"negative": 0.25, "positive": 0.75}}
_ANSWERS: dict[str, Any] = {
    name: {"value": {"predictions": [_POSITIVE] * (2 if name == "split" else 1)}} for name in _REQUESTS
}


@router.post(
    "/invocations",
    summary="What does a model say of rows?",
    response_model=Predictions,
    responses={
        200: {
            "description": "an answer for each row, in order",
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
            path="/invocations",
            wrong=("dataframe_records[0].text", "is required"),
        ),
    },
    openapi_extra=request_body(
        Invocation,
        _REQUESTS,
        **{"text/csv": {"schema": {"type": "string"}, "example": "text\nA lovely garden.\n"}},
    ),
)
async def invocations(
    request: Request,
    models: LiveModels,
    settings: ServerSettings,
    deadline: Deadline,
    model: Annotated[
        str | None, Query(description="`id` of a live model; needed where models of several tasks are live")
    ] = None,
) -> Response:
    """One answer for each row of a data frame, as JSON in MLflow's shapes or as CSV with a line of names."""
    if _media_type(request) == "text/csv":
        body = await body_of(request, "CSV with a line of names")
        await check_values(body, settings.max_values, CSV_MARKS)
        rows, place, params = *_lines(body, settings.max_items), {}
    else:
        asked = await parse(Invocation, await body_of(request), settings)
        params = dict(asked.params or {})
        rows, place = _rows(asked, settings.max_items)
    name = params.pop("model", model)
    if name is not None and not isinstance(name, str):
        raise fields(("params.model", f"the id of a live model fits, not {json_type(name)}"))
    live = _chosen(models, name)

    def where(index: int, field: str) -> str:
        return f"params.{field[:80]}" if field in params else place(index, field)

    task = live.bundle.task
    kind = task.Input.model_fields
    records = [
        {field: value for field, value in record.items()
         if not (_absent(value) and field in kind and not kind[field].is_required())}
        for record in (row if isinstance(row, dict) else {task.line_field or "": row} for row in rows)
    ]  # fmt: skip
    inputs = inputs_of(live.bundle, records, params, where)
    if not inputs:
        return Response(to_json({"predictions": []}), media_type="application/json")
    check_limits(live.bundle, inputs, settings, where)
    try:
        answer = await awaited(request, live.predict(inputs, deadline))
    except InputError as error:
        raise unanswerable(error, live.bundle, where) from None

    def write() -> bytes:
        found = [output.model_dump(mode="json", exclude_none=True) for output in answer.outputs]
        columns = dict.fromkeys(name for one in found for name in one)
        return to_json({"predictions": [{name: one.get(name) for name in columns} for one in found]})

    # How much an answer holds that tells of every token goes by what was asked.
    size = sum(max(1, task.effort(one)) for one in inputs)
    headers = {"Server-Timing": answer.timing, "X-Model-Version": live.version}
    return Response(await written(size, write), media_type="application/json", headers=headers)


@router.get(
    "/ping",
    summary="Can it answer?",
    response_class=Response,
    responses={
        200: {"description": "yes", "content": {"text/plain": {"schema": {"type": "string"}, "example": "\n"}}},
        **documented("not-ready", path="/ping"),
    },
)
async def ping(request: Request) -> Response:
    """As ``/readyz``, for those who know MLflow's scoring server."""
    readiness(request.app.state)
    return Response("\n", media_type="text/plain")


@router.get(
    "/version",
    summary="Which server is this?",
    response_class=Response,
    responses={
        200: {
            "description": "its version",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": __version__}},
        }
    },
)
async def version() -> Response:
    """The version of seqapp, where MLflow's scoring server tells its own."""
    return Response(__version__, media_type="text/plain")


def _media_type(request: Request) -> str:
    given = request.headers.get("content-type", "")
    media_type, *parameters = (part.strip().lower() for part in given.split(";"))
    charset = next((part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")), "utf-8")
    if media_type not in ("application/json", "text/csv") or charset not in ("utf-8", "utf8"):
        told = f"Content-Type is {given[:80]!r}" if given else "Content-Type is missing"
        raise ProblemError("unsupported-media-type", f"{told}; application/json and text/csv fit, in UTF-8")
    return media_type


def _chosen(models: Models, name: str | None) -> LiveModel:
    if name is not None:
        try:
            return models.get(name)
        except UnknownModel as error:
            raise unknown_model(error, "params.model") from None
    tasks = {model.task for model in models}
    if len(tasks) > 1:
        known = ", ".join(model.id for model in models)
        raise fields(("params.model", f"models of several tasks are live, so a request names one: {known}"))
    if not tasks:
        raise ProblemError("not-ready", "no model is live", headers={"Retry-After": "5"})
    return models.find(tasks.pop())


def _rows(asked: Invocation, most: int) -> tuple[list[Any], Where]:
    """The rows, objects or values of the task's one text field, and the place of each; ``most`` fit."""
    if asked.dataframe_split is not None:
        frame = asked.dataframe_split
        return _split(frame.columns, frame.data, most, "dataframe_split.columns", "dataframe_split.data")
    if isinstance(asked.inputs, dict):
        return _columns(asked.inputs, most)
    name = next(name for name in SHAPES[1:] if getattr(asked, name) is not None)
    rows = getattr(asked, name)
    if isinstance(rows, str):
        return [rows], lambda index, field: name
    _not_more(len(rows), most)
    return list(rows), lambda index, field: f"{name}[{index}]" + (f".{field[:80]}" if field else "")


def _not_more(many: int, most: int) -> None:
    if many > most:
        raise fields(("body", f"{many} rows are too many; at most {most} fit in one request"))


def _split(columns: list[str], data: list[list[Any]], most: int, named: str, place: str) -> tuple[list[Any], Where]:
    _not_more(len(data), most)
    if len(set(columns)) < len(columns):
        raise fields((named, "a column stands there twice; different names fit"))
    odd = [(f"{place}[{index}]", f"{len(row)} values; {len(columns)} fit, one for each column")
           for index, row in enumerate(data) if len(row) != len(columns)]  # fmt: skip
    if odd:
        raise fields(*odd)
    rows = [dict(zip(columns, row, strict=True)) for row in data]
    return rows, lambda index, field: f"{place}[{index}]" + (f".{field[:80]}" if field else "")


def _columns(columns: Mapping[str, Any], most: int) -> tuple[list[Any], Where]:
    lists = {name: value if isinstance(value, list) else [value] for name, value in columns.items()}
    many = max(map(len, lists.values()), default=0)
    _not_more(many, most)
    odd = ((f"inputs.{name[:80]}", f"{len(values)} values; {many} fit, as in the longest list")
           for name, values in lists.items() if len(values) != many)  # fmt: skip
    if found := [*islice(odd, MOST_ERRORS)]:
        raise fields(*found)
    rows = [{name: values[index] for name, values in lists.items()} for index in range(many)]
    return rows, lambda index, field: f"inputs.{field[:80]}[{index}]" if field else f"inputs, {index}"


def _lines(body: bytes, most: int) -> tuple[list[Any], Where]:
    """The rows of CSV, of which ``most`` fit; a cell that is empty is absent."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProblemError("malformed-body", f"the body is not UTF-8: byte {error.start} cannot be decoded") from None
    try:
        names, *lines = list(csv.reader(StringIO(text, newline=""), strict=True)) or [[]]
    except csv.Error as error:
        raise ProblemError("malformed-body", f"the body is not CSV that this server reads: {error}") from None
    rows = [[cell or None for cell in line] for line in lines if line]
    return _split(names, rows, most, "the first line", "row")


def _absent(value: Any) -> bool:
    """A cell that a data frame fills because another row has a value there."""
    return value is None or (isinstance(value, float) and math.isnan(value))

"""The Open Inference Protocol, version 2: every live model by tensors, as KServe's and Triton's clients ask.

B elements of the input, C classes, N answers: one for each element, or of a generation model n.

Texts are tensors of ``BYTES``. Bodies are JSON; a text may also come as Triton's binary extension has it, since its
client sends texts so unless told otherwise, but answers are always JSON, which that client reads as well.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import prod
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from seqapp import __version__
from seqapp.registry import suggest
from seqapp.tasks import InputError, Task
from seqapp.tasks.sentiment import Sentiment
from serving.models import LiveModel, Models
from serving.problems import MOST_ERRORS, ProblemError, Wire, documented, fields, json_type
from serving.routes import ENGINE_PROBLEMS, TIMING, Deadline, LiveModels, ServerSettings, awaited, written
from serving.routes import inputs as given
from serving.routes.health import readiness
from serving.settings import Settings

router = APIRouter(prefix="/v2", tags=["inference"])
HEADER_LENGTH = "Inference-Header-Content-Length"
"""Tells how much of a body is JSON, where tensors follow it."""
UNUSED = frozenset({"binary_data_output", "binary_data", "content_type"})
"""Parameters that ask for another coding of what is answered as JSON: taken, and nothing changes."""


class Column(NamedTuple):
    """One output tensor of a task.

    Args:
        name: of the tensor.
        datatype: as the protocol calls it.
        value: of one row, or a list of C of them.
        labels: of those C.
        meaning: for a person.
    """

    name: str
    datatype: str
    value: Callable[[Any], Any]
    meaning: str
    labels: Callable[[Task[Any, Any]], list[str]] | None = None


class Tensors(NamedTuple):
    """How a task answers by tensors.

    Args:
        rows: of one answer.
        columns: the outputs.
        refused: parameters that ask for what no tensor holds.
    """

    rows: Callable[[Any], Sequence[Any]]
    columns: Sequence[Column]
    refused: frozenset[str]


def _labels(task: Task[Any, Any]) -> list[str]:
    assert isinstance(task, Sentiment)
    return list(task.labels.names)


TASKS: Mapping[str, Tensors] = {
    "sentiment": Tensors(
        lambda output: [output],
        [
            Column("label", "BYTES", lambda row: row.label, "the most probable label"),
            Column("score", "FP64", lambda row: row.score, "its probability"),
            Column("scores", "FP64", lambda row: [*row.scores.values()], "the probability of every label", _labels),
        ],
        frozenset({"explain"}),
    ),
    "generation": Tensors(
        lambda output: output.completions,
        [
            Column("text", "BYTES", lambda row: row.text, "the completions, n of each prompt"),
            Column("score", "FP64", lambda row: row.score, "the log-probability of the tokens added, in nats"),
            Column("tokens", "INT64", lambda row: row.tokens, "how many tokens were added"),
            Column("finish_reason", "BYTES", lambda row: row.finish_reason, "stop, or length"),
        ],
        frozenset({"logprobs", "return_beams"}),
    ),
    "translation": Tensors(
        lambda output: [output],
        [
            Column("translation", "BYTES", lambda row: row.text, "the text in the other language"),
            Column("score", "FP64", lambda row: row.score, "the mean of its sentences' scores"),
        ],
        frozenset({"alternatives", "return_attention"}),
    ),
}
"""By task, what the tensors of an answer are."""


class ServerMetadata(BaseModel):
    """What answers."""

    name: str = "seqapp"
    version: str = __version__
    extensions: list[str] = Field(default=[], description="of the protocol")


class Live(BaseModel):
    """The process answers."""

    live: bool = True


class ServerReady(BaseModel):
    """Models answer."""

    ready: bool = True


class ModelReady(BaseModel):
    """One model answers."""

    name: str
    ready: bool = True


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 is any size."""

    name: str = Field(examples=["text"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(examples=[[-1]])
    parameters: dict[str, Any] = Field(description="`description`; `labels`, the names along the last dimension")


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str = Field(examples=["sentiment-bundled"])
    versions: list[str] = Field(description="the live ones", examples=[["3"]])
    platform: str = Field(examples=["seqapp_sentiment"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str] = Field(description="what `parameters` of a request may hold, and what it means")


class InputTensor(Wire):
    """A tensor of a request."""

    name: str = Field(examples=["text"])
    shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(
        fail_fast=True, description="sizes whose product is the number of elements", examples=[[1]]
    )
    datatype: str = Field(examples=["BYTES"])
    parameters: dict[str, Any] = Field(default={}, description="`binary_data_size`, for bytes after the JSON")
    data: list[Any] | None = Field(default=None, description="the elements, flat or nested as the shape is")


class OutputTensor(Wire):
    """A tensor that is wanted."""

    name: str
    parameters: dict[str, Any] = Field(default={}, description="none changes anything")


class InferenceRequest(Wire):
    """What to ask a model."""

    id: str | None = Field(default=None, description="comes back with the answer")
    inputs: list[InputTensor] = Field(fail_fast=True, description="the one tensor that the model's metadata names")
    parameters: dict[str, Any] = Field(default={}, description="fields of the task's input, the same for every element")
    outputs: list[OutputTensor] | None = Field(
        default=None, fail_fast=True, description="which tensors to answer; by default all"
    )


class AnswerTensor(BaseModel):
    """A tensor of an answer."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default={}, description="`labels`, the names along the last dimension")
    data: list[Any] = Field(description="the elements, flat, the last index fastest")


class InferenceAnswer(BaseModel):
    """What a model answers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[AnswerTensor]


SCHEMAS = (InferenceRequest,)
"""What the OpenAPI document must hold for bodies that routes read themselves."""

_REQUESTS: dict[str, Any] = {
    "sentiment": {
        "value": {
            "id": "1",
            "inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["A lovely garden.", "It broke."]}],
            "outputs": [{"name": "label"}],
        }
    },
    "generation": {
        "value": {
            "inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["The for statement"]}],
            "parameters": {"max_tokens": 20, "temperature": 0},
        }
    },
}
_ANSWERS: dict[str, Any] = {
    "sentiment": {
        "value": {
            "model_name": "sentiment-bundled",
            "model_version": "3",
            "id": "1",
            "outputs": [{"name": "label", "shape": [2], "datatype": "BYTES", "parameters": {},
                         "data": ["positive", "negative"]}],
        }
    }
}  # fmt: skip
_FAILURES = documented(
    "malformed-body",
    "unknown-model",
    "body-too-large",
    "unsupported-media-type",
    "invalid-request",
    "internal-error",
    *ENGINE_PROBLEMS,
    path="/v2/models/sentiment-bundled/infer",
    wrong=("inputs[0].datatype", "FP32 does not fit, BYTES does"),
)
_DEFAULT: dict[int | str, dict[str, Any]] = {"default": {**_FAILURES[500], "description": "any other error"}}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: _FAILURES[404], **_DEFAULT}
_INFER: dict[str, Any] = {
    "summary": "What does a model say of a tensor?",
    "response_model": InferenceAnswer,
    "responses": {
        200: {
            "description": "the tensors that the model's metadata names",
            "content": {"application/json": {"examples": _ANSWERS}},
            "headers": TIMING,
        },
        **_FAILURES,
        **_DEFAULT,
    },
    "openapi_extra": given.request_body(InferenceRequest, _REQUESTS),
}


@router.get("", summary="Which server is this?", responses=_DEFAULT)
async def server_metadata() -> ServerMetadata:
    """Its name and version."""
    return ServerMetadata()


@router.get("/health/live", summary="Is the process alive?", responses=_DEFAULT)
async def server_live() -> Live:
    """As ``/livez``."""
    return Live()


@router.get(
    "/health/ready",
    summary="Can it answer?",
    responses={**documented("not-ready", path="/v2/health/ready"), **_DEFAULT},
)
async def server_ready(request: Request) -> ServerReady:
    """As ``/readyz``."""
    readiness(request.app.state)
    return ServerReady()


@router.get("/models/{name}", summary="What does a model take and give?", responses=_UNKNOWN)
async def model_metadata(name: str, models: LiveModels) -> ModelMetadata:
    """Names, datatypes and shapes of its tensors, and what may be in ``parameters``."""
    return _metadata(models, models.get(name), name)


@router.get("/models/{name}/versions/{version}", summary="What does a version take and give?", responses=_UNKNOWN)
async def version_metadata(name: str, version: str, models: LiveModels) -> ModelMetadata:
    """As of the model."""
    return _metadata(models, models.get(f"{name}/{version}"), name)


@router.get(
    "/models/{name}/ready",
    summary="Does a model answer?",
    responses={**documented("not-ready", path="/v2/models/name/ready"), **_UNKNOWN},
)
async def model_ready(name: str, models: LiveModels) -> ModelReady:
    """Whether it is live."""
    return _ready(models.get(name), name)


@router.get(
    "/models/{name}/versions/{version}/ready",
    summary="Does a version answer?",
    responses={**documented("not-ready", path="/v2/models/name/versions/1/ready"), **_UNKNOWN},
)
async def version_ready(name: str, version: str, models: LiveModels) -> ModelReady:
    """Whether it is live."""
    return _ready(models.get(f"{name}/{version}"), name)


@router.post("/models/{name}/infer", **_INFER)
async def model_infer(
    name: str, request: Request, models: LiveModels, settings: ServerSettings, deadline: Deadline
) -> Response:
    """The answers to a tensor of texts, as tensors."""
    models.get(name)  # a wrong address comes before a wrong body; by the time that is read, another may be live
    asked = await _read(request, await given.body_of(request), settings)
    return await _infer(request, models.get(name), name, asked, settings, deadline)


@router.post("/models/{name}/versions/{version}/infer", **_INFER)
async def version_infer(
    name: str, version: str, request: Request, models: LiveModels, settings: ServerSettings, deadline: Deadline
) -> Response:
    """As of the model."""
    models.get(f"{name}/{version}")
    asked = await _read(request, await given.body_of(request), settings)
    return await _infer(request, models.get(f"{name}/{version}"), name, asked, settings, deadline)


async def _read(request: Request, body: bytes, settings: Settings) -> InferenceRequest:
    """The request; a text that follows the JSON becomes its tensor's data."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    length = request.headers.get(HEADER_LENGTH)
    # Triton's client declares no type at all.
    if media_type != "application/json" and not (length and media_type == "application/octet-stream"):
        raise ProblemError(
            "unsupported-media-type", f"Content-Type is {media_type[:80]!r}; 'Content-Type: application/json' fits"
        )
    if length is None:
        return await given.parse(InferenceRequest, body, settings)
    if not (length.isdecimal() and int(length[:12]) <= len(body)):
        raise fields((HEADER_LENGTH, f"the length of the JSON fits, at most the {len(body)} bytes of the body"))
    asked = await given.parse(InferenceRequest, body[: int(length)], settings)
    rest = memoryview(body)[int(length) :]
    for index, tensor in enumerate(asked.inputs):
        size = tensor.parameters.pop("binary_data_size", None)
        if size is not None:
            place = f"inputs[{index}].parameters.binary_data_size"
            if not (isinstance(size, int) and 0 <= size <= len(rest)) or tensor.data is not None:
                raise fields((place, f"a number of bytes fits, at most {len(rest)}, and no data"))
            # What is not BYTES is refused by its datatype.
            tensor.data = _unpack(rest[:size], place, settings.max_items) if tensor.datatype == "BYTES" else []
            rest = rest[size:]
    return asked


def _unpack(raw: memoryview, place: str, most: int) -> list[str]:
    """The elements of a tensor of BYTES in the binary extension: each after its length, 4 bytes, little endian."""
    texts: list[str] = []
    at = 0
    try:
        while at < len(raw):
            if len(texts) == most:
                raise fields((place, f"more than {most} texts are too many for one request"))
            (size,) = struct.unpack_from("<I", raw, at)
            at += 4 + size
            if at > len(raw):
                raise fields((place, "the last element is longer than the bytes"))
            texts.append(str(raw[at - size : at], "utf-8"))
    except (struct.error, UnicodeDecodeError):
        raise fields((place, "texts in UTF-8 fit, each after its length in 4 bytes, little endian")) from None
    return texts


async def _infer(
    request: Request, live: LiveModel, name: str, asked: InferenceRequest, settings: Settings, deadline: float | None
) -> Response:
    task = live.bundle.task
    tensors = _tensors(live)
    texts = _texts(asked, task.line_field or "", settings)
    wanted = _wanted(asked, tensors)
    shared = {key: value for key, value in asked.parameters.items() if key not in UNUSED}
    if odd := sorted(tensors.refused & shared.keys()):
        raise fields(*((f"parameters.{key}", "no tensor holds what it asks for; the task's own path does")
                       for key in odd))  # fmt: skip
    if task.line_field in shared:
        raise fields((f"parameters.{task.line_field}", "it is the input tensor"))
    records = [{task.line_field or "": text} for text in texts]

    def where(index: int, field: str) -> str:
        return f"parameters.{field[:80]}" if field and field != task.line_field else f"inputs[0].data[{index}]"

    inputs = given.inputs_of(live.bundle, records, shared, where)
    given.check_limits(live.bundle, inputs, settings, where)
    try:
        answer = await awaited(request, live.predict(inputs, deadline))
    except InputError as error:
        raise given.unanswerable(error, live.bundle, where) from None

    def write() -> bytes:
        rows = [row for output in answer.outputs for row in tensors.rows(output)]
        outputs = [_tensor(column, task, rows) for column in wanted]
        told = InferenceAnswer(model_name=name, model_version=live.version, id=asked.id, outputs=outputs)
        return told.model_dump_json(exclude_none=True).encode()

    content = await written(len(inputs) * len(wanted), write)
    headers = {"Server-Timing": answer.timing, "X-Model-Version": live.version}
    return Response(content, media_type="application/json", headers=headers)


def _texts(asked: InferenceRequest, name: str, settings: Settings) -> list[str]:
    """The elements of the input tensor."""
    if len(asked.inputs) != 1:
        raise fields(("inputs", f"{len(asked.inputs)} tensors; one fits, called {name!r}"))
    (tensor,) = asked.inputs
    wrong = []
    if tensor.name != name:
        wrong.append(("inputs[0].name", f"{tensor.name[:80]!r} is no input; {name!r} fits"))
    if tensor.datatype != "BYTES":
        wrong.append(("inputs[0].datatype", f"{tensor.datatype[:80]} does not fit, BYTES does"))
    if not tensor.shape or tensor.shape[1:] not in ([], [1]):
        wrong.append(
            ("inputs[0].shape", f"{str(tensor.shape[:4])[:80]} does not fit; [B] does, and [B, 1], for B texts")
        )
    odd = sorted(tensor.parameters.keys() - UNUSED)
    if odd:
        wrong.append((f"inputs[0].parameters.{odd[0][:80]}", "no such parameter of a tensor"))
    if tensor.data is None:
        wrong.append(("inputs[0].data", f"is required, or {HEADER_LENGTH} and binary_data_size"))
    if wrong:
        raise fields(*wrong)
    data = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in tensor.data or []]
    if len(data) != prod(tensor.shape):
        raise fields(("inputs[0].data", f"{len(data)} elements; the shape {tensor.shape} has {prod(tensor.shape)}"))
    if len(data) > settings.max_items:
        raise fields(("inputs[0].data", f"{len(data)} texts are too many; at most {settings.max_items} fit in one "
                      "request"))  # fmt: skip
    bad = {index: one for index, one in enumerate(data) if not isinstance(one, str)}
    if bad:
        raise fields(
            *((f"inputs[0].data[{index}]", f"a text fits, not {json_type(one)}") for index, one in bad.items())
        )
    return data


def _wanted(asked: InferenceRequest, tensors: Tensors) -> list[Column]:
    known = {column.name: column for column in tensors.columns}
    names = [one.name for one in asked.outputs or []] or list(known)
    odd = ((f"outputs[{index}].name", f"no output is called {name[:80]!r}; {suggest(name[:80], list(known))}")
           for index, name in enumerate(names) if name not in known)  # fmt: skip
    if found := [*islice(odd, MOST_ERRORS)]:
        raise fields(*found)
    return [known[name] for name in dict.fromkeys(names)]


def _tensor(column: Column, task: Task[Any, Any], rows: Sequence[Any]) -> AnswerTensor:
    values = [column.value(row) for row in rows]
    if column.labels is None:
        return AnswerTensor(name=column.name, shape=[len(rows)], datatype=column.datatype, data=values)
    labels = column.labels(task)
    return AnswerTensor(
        name=column.name,
        shape=[len(rows), len(labels)],
        datatype=column.datatype,
        parameters={"labels": labels},
        data=[value for row in values for value in row],
    )


def _metadata(models: Models, live: LiveModel, name: str) -> ModelMetadata:
    task = live.bundle.task
    tensors = _tensors(live)
    of_name = next((one for one in models.deployments if live in [place.live for place in one.places]), None)
    versions = [place.live.version for place in of_name.places if place.live] if of_name else [live.version]
    field = task.line_field or ""
    outputs = []
    for column in tensors.columns:
        labels = column.labels(task) if column.labels else None
        about = {"description": column.meaning} | ({"labels": labels} if labels else {})
        shape = [-1, len(labels)] if labels else [-1]
        outputs.append(TensorMetadata(name=column.name, datatype=column.datatype, shape=shape, parameters=about))
    return ModelMetadata(
        name=name,
        versions=versions,
        platform=f"seqapp_{live.task}",
        inputs=[
            TensorMetadata(
                name=field,
                datatype="BYTES",
                shape=[-1],
                parameters={"description": str(task.Input.model_fields[field].description)},
            )
        ],
        outputs=outputs,
        parameters={
            key: str(info.description)
            for key, info in task.Input.model_fields.items()
            if key != field and key not in tensors.refused
        },
    )


def _ready(live: LiveModel, name: str) -> ModelReady:
    if not live.engine.alive:
        raise ProblemError("not-ready", f"{name[:80]!r} does not answer", headers={"Retry-After": "5"})
    return ModelReady(name=name)


def _tensors(live: LiveModel) -> Tensors:
    if live.task not in TASKS:
        raise ProblemError("unknown-model", f"{live.id!r} is a {live.task} model, which no tensors are known for")
    return TASKS[live.task]

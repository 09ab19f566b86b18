"""Every error as RFC 9457 ``application/problem+json``, or in OpenAI's shape where its clients call."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from seqapp.registry import suggest
from serving.engine import Late, Overloaded, Refused
from serving.models import UnknownModel

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
COMPLETIONS = "/v1/completions"
OPENAI = re.compile(
    rf"(?:{COMPLETIONS}|/v1/(?:chat/completions|responses|embeddings|models/(?!reload/?$).+(?<!/card)))/?"
)
"""Paths whose clients expect OpenAI's errors."""
ELSEWHERE = {
    "/v1/chat/completions": f"the models go on from a text and do not chat; {COMPLETIONS} takes a prompt",
    "/v1/responses": f"the models go on from a text and do not chat; {COMPLETIONS} takes a prompt",
    "/v1/embeddings": f"no model gives embeddings; {COMPLETIONS} takes a prompt, /openapi.json lists the paths",
}
"""What OpenAI's clients call and this server has not, and what fits instead."""
INFERENCE = "/v2"
"""The path below which clients of the Open Inference Protocol look for ``error``."""
MOST_ERRORS = 20
"""Field errors listed in one answer; a hostile body can hold a million."""


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="where, as in `inputs[3]` or `parameters.top_k`", examples=["inputs[0]"])
    detail: str = Field(description="what is wrong there, and what would fit")


class Problem(BaseModel):
    """An error, RFC 9457."""

    type: str = Field(description="what a program should look at", examples=["urn:problem-type:seqapp:invalid-request"])
    title: str = Field(description="the type in words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what was wrong this time, for a person")
    instance: str = Field(description="the path that was called")
    request_id: str = Field(description="the `X-Request-Id` of the answer; the server's log has it too")
    errors: list[FieldError] = Field(default=[], description="the fields that are wrong, if fields are")


class InferenceProblem(Problem):
    """An error as clients of the Open Inference Protocol read it, too."""

    error: str = Field(description="`detail`, by the name that the protocol has for it")


class OpenAIError(BaseModel):
    """What was wrong, in the words of OpenAI's interface."""

    message: str = Field(description="what was wrong, and what would fit, for a person")
    type: Literal["invalid_request_error", "server_error"] = Field(description="whose fault it is")
    param: str | None = Field(
        default=None, description="the first field that is wrong, if fields are", examples=["temperature"]
    )
    code: str = Field(description="what a program should look at", examples=["model_not_found"])


class OpenAIProblem(BaseModel):
    """An error as OpenAI's clients read it."""

    error: OpenAIError


_OPENAI_CODES = {
    "unknown-model": "model_not_found",
    "unauthorized": "invalid_api_key",
    "too-many-requests": "rate_limit_exceeded",
}


class Kind(NamedTuple):
    """One kind of problem."""

    status: int
    title: str


KINDS = {
    "malformed-request": Kind(400, "The request is not HTTP that this server reads"),
    "malformed-body": Kind(400, "The body cannot be read"),
    "unauthorized": Kind(401, "A key is missing, or is not known"),
    "forbidden": Kind(403, "It is not allowed"),
    "unknown-path": Kind(404, "There is no such path"),
    "unknown-model": Kind(404, "There is no such model"),
    "reload-failed": Kind(409, "What was asked for is not live"),
    "method-not-allowed": Kind(405, "The path does not take this method"),
    "request-timeout": Kind(408, "The request did not come in time"),
    "body-too-large": Kind(413, "The body is too large"),
    "url-too-long": Kind(414, "The path is too long"),
    "unsupported-media-type": Kind(415, "The body is not declared as JSON"),
    "misdirected": Kind(421, "Another host was asked for"),
    "invalid-request": Kind(422, "The request does not fit"),
    "too-many-requests": Kind(429, "One client asks too much"),
    "headers-too-large": Kind(431, "The headers are too large"),
    "client-gone": Kind(499, "The client has left"),
    "internal-error": Kind(500, "The server failed"),
    "overloaded": Kind(503, "The server has too much to do"),
    "not-ready": Kind(503, "The server is not ready"),
    "deadline-exceeded": Kind(504, "The answer took too long"),
}


class ProblemError(HTTPException):
    """Answer with a problem.

    Args:
        kind: a key of ``KINDS``.
        detail: what was wrong, and what would fit.
        errors: the fields that are wrong.
        headers: to send along.
    """

    def __init__(
        self, kind: str, detail: str, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(KINDS[kind].status, detail, headers)
        self.kind = kind
        self.errors = list(errors)


class Wire(BaseModel):
    """A JSON object of a request: strict types, and a field that it does not have is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise misfit({"": f"a JSON object fits, not {json_type(value)}"})
        known = list(cls.model_fields)
        unknown = list(islice((name for name in value if name not in cls.model_fields), MOST_ERRORS))
        if unknown:
            raise misfit({f".{name[:80]}": f"no such field; {suggest(name[:80], known)}" for name in unknown})
        return value


def misfit(problems: Mapping[str, str]) -> PydanticCustomError:
    """What a validator raises to name places below its own: ``{"[3]": "the text is empty"}``."""
    return PydanticCustomError("misfit", "the value does not fit", {"problems": dict(problems)})


def texts(value: Any, element: str = "text") -> Any:
    """Check a field that takes a text or a list of texts, for a validator that runs before pydantic's own.

    The two halves of a union would each complain; a person wants one complaint, about the wrong element.

    Args:
        value: what was sent.
        element: what the list holds, in the singular.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise misfit({"": f"a text or a list of texts fits, not {json_type(value)}"})
    if not value:
        raise misfit({"": f"the list is empty; one {element} or more fits"})
    check_each(value, lambda one: isinstance(one, str), "a text")
    return value


def check_each(values: Sequence[Any], fits: Callable[[Any], bool], what: str) -> None:
    """Raise :func:`misfit` for the first of ``values`` that do not fit, where ``what`` would."""
    wrong = ((index, one) for index, one in enumerate(values) if not fits(one))
    if found := {f"[{i}]": f"{what} fits, not {json_type(one)}" for i, one in islice(wrong, MOST_ERRORS)}:
        raise misfit(found)


def json_type(value: Any) -> str:
    """What a person who wrote JSON calls the type of ``value``."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def fields(*errors: tuple[str, str]) -> ProblemError:
    """An ``invalid-request`` that names fields."""
    found = [FieldError(field=field, detail=detail) for field, detail in errors[:MOST_ERRORS]]
    return ProblemError("invalid-request", "; ".join(f"{one.field}: {one.detail}" for one in found[:3]), found)


def unknown_model(error: UnknownModel, field: str = "") -> ProblemError:
    """There is no such model; ``field`` of the request named it, or its path where that is empty."""
    return ProblemError("unknown-model", str(error), [FieldError(field=field, detail=str(error))] if field else [])


def unanswered(error: Refused | Late) -> ProblemError:
    """Why an engine gave no answer."""
    if isinstance(error, Late):
        return ProblemError("deadline-exceeded", str(error))
    kind = "overloaded" if isinstance(error, Overloaded) else "not-ready"
    return ProblemError(kind, str(error), headers={"Retry-After": str(error.retry_after)})


def respond(scope: Scope, error: HTTPException) -> Response:
    """``error`` as a response to the request of ``scope``."""
    state = scope["state"]
    state["problem"] = error.kind if isinstance(error, ProblemError) else "http"
    status, media_type, answer = render(scope["path"], error, state["request_id"])
    # json.dumps writes ASCII, so a lone surrogate that a client sent and a detail repeats cannot break the answer.
    return Response(json.dumps(answer.model_dump()), status, error.headers, media_type)


def render(path: str, error: HTTPException, request_id: str) -> tuple[int, str, BaseModel]:
    """Status, media type and body of ``error`` at ``path``."""
    kind, errors = (error.kind, error.errors) if isinstance(error, ProblemError) else (None, [])
    if OPENAI.fullmatch(path):
        # OpenAI knows no 422; its clients show the message of a 400 to a person.
        status = 400 if error.status_code == 422 else error.status_code
        code = _OPENAI_CODES.get(kind or "", kind or HTTPStatus(status).name.lower())
        wrong = OpenAIError(
            message=str(error.detail),
            type="invalid_request_error" if status < 500 else "server_error",
            param=errors[0].field if errors else "model" if kind == "unknown-model" else None,
            code=code.replace("-", "_"),
        )
        return status, "application/json", OpenAIProblem(error=wrong)
    problem = Problem(
        type=f"urn:problem-type:seqapp:{kind}" if kind else "about:blank",
        title=KINDS[kind].title if kind else HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=str(error.detail),
        instance=quote(path[:500], errors="replace"),
        request_id=request_id,
        errors=errors,
    )
    if path == INFERENCE or path.startswith(f"{INFERENCE}/"):
        problem = InferenceProblem(**dict(problem), error=problem.detail)
    return problem.status, MEDIA_TYPE, problem


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error as a problem."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return respond(request.scope, _explained(request, error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(request.scope, _validation(request, error))

    @app.exception_handler(Refused)
    @app.exception_handler(Late)
    async def _unanswered(request: Request, error: Refused | Late) -> Response:
        # Nobody pays for what no model has begun (serving.ratelimit).
        request.scope["state"]["free"] = isinstance(error, Refused) or not error.begun
        return respond(request.scope, unanswered(error))

    @app.exception_handler(UnknownModel)
    async def _unknown(request: Request, error: UnknownModel) -> Response:
        return respond(request.scope, unknown_model(error, "" if request.path_params else "model"))


def documented(
    *kinds: str,
    path: str = "/v1/sentiment",
    wrong: tuple[str, str] = ("inputs[0]", "the text is empty: it holds no word, digit or mark"),
) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of the route at ``path`` that may answer with ``kinds``, for the OpenAPI document.

    Args:
        kinds: keys of ``KINDS``.
        path: of the route.
        wrong: field and detail of the example of an invalid request.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        title = KINDS[kind].title
        error = fields(wrong) if kind == "invalid-request" else ProblemError(kind, title)
        status, media_type, example = render(path, error, "5f3d2c0e9a7b4c1d8e6f0a1b2c3d4e5f")
        schema = {"$ref": f"#/components/schemas/{type(example).__name__}"}
        entry = responses.setdefault(
            status, {"description": title, "content": {media_type: {"schema": schema, "examples": {}}}}
        )
        entry["content"][media_type]["examples"][kind] = {"value": example.model_dump()}
    return responses


def schemas(bodies: Sequence[type[BaseModel]] = ()) -> dict[str, Any]:
    """The OpenAPI components that :func:`documented` refers to.

    Args:
        bodies: further ones, of requests.
    """
    found: dict[str, Any] = {}
    answers: list[type[BaseModel]] = [Problem, InferenceProblem, OpenAIProblem]
    for model in (*answers, *bodies):
        mode: Literal["validation", "serialization"] = "validation" if model in bodies else "serialization"
        schema = model.model_json_schema(mode=mode, ref_template="#/components/schemas/{model}")
        found |= {**schema.pop("$defs", {}), model.__name__: schema}
    return found


def _explained(request: Request, error: HTTPException) -> HTTPException:
    """Starlette's and FastAPI's own errors, in our words."""
    if isinstance(error, ProblemError):
        return error
    path = request.scope["path"]
    if error.status_code == 404:
        instead = ELSEWHERE.get(path.rstrip("/"), "/openapi.json lists the paths")
        return ProblemError("unknown-path", f"there is nothing at {path[:200]}; {instead}")
    if error.status_code == 405:
        # What answers GET answers HEAD too (serving.envelope).
        allowed = (error.headers or {}).get("Allow", "")
        allowed = f"{allowed}, HEAD" if "GET" in allowed and "HEAD" not in allowed else allowed
        return ProblemError(
            "method-not-allowed", f"{path[:200]} takes {allowed}, not {request.method}", headers={"Allow": allowed}
        )
    if error.status_code == 400:
        return ProblemError("malformed-body", unreadable(error.__cause__))
    return error


def unreadable(cause: BaseException | None) -> str:
    """Why a body is no JSON, in words."""
    if isinstance(cause, UnicodeDecodeError):
        return f"the body is not UTF-8: byte {cause.start} cannot be decoded ({cause.reason})"
    if isinstance(cause, RecursionError):
        return "the body is JSON that is nested too deeply"
    if isinstance(cause, ValueError):
        return f"the body is not JSON that this server reads: {str(cause).partition(';')[0]}"
    return "the body cannot be read"


def _validation(request: Request, error: RequestValidationError) -> ProblemError:
    raw = error.errors()
    first = raw[0]
    if first["type"] == "json_invalid":
        position = first["loc"][-1]
        return ProblemError("malformed-body", f"the body is not JSON: {first['ctx']['error']} at character {position}")
    if first["type"] == "missing" and first["loc"] == ("body",):
        return ProblemError("malformed-body", "the body is empty; a JSON object fits")
    if isinstance(error.body, bytes):
        given = request.headers.get("content-type", "")[:80]
        detail = f"Content-Type is {given!r}" if given else "Content-Type is missing"
        return ProblemError("unsupported-media-type", f"{detail}; send 'Content-Type: application/json'")
    found: list[tuple[str, str]] = []
    for entry in raw:
        place = _place(entry["loc"])
        if entry["type"] == "misfit":
            found += [
                (f"{place}{below}".lstrip(".") or "body", text) for below, text in entry["ctx"]["problems"].items()
            ]
        elif entry["type"] == "value_error" and not place:
            # A check of how fields fit together begins with the one that it means.
            field, _, detail = str(entry["ctx"]["error"]).partition(" ")
            named = isinstance(error.body, dict) and field in error.body
            found.append((field, detail) if named else ("body", f"{field} {detail}"))
        else:
            given = entry.get("input")
            # Neither a list nor an object is shown: one that is nested deeply cannot be written.
            shown = repr(given[:40]) if isinstance(given, str) else ""
            shown = str(given)[:40] if isinstance(given, int | float) else shown
            told = str(entry["msg"]).removeprefix("Value error, ") + (f", not {shown}" if shown else "")
            found.append((place or "body", told if entry["type"] != "missing" else "is required"))
    return fields(*found)


def _place(location: Sequence[str | int]) -> str:
    """``("body", "inputs", 3)`` -> ``inputs[3]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:])
    return "".join(parts).lstrip(".")

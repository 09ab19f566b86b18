"""``POST /v1/completions``: texts that go on from prompts, in the shape that OpenAI's clients know."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel, Field, field_validator, model_validator
from starlette.types import Message, Receive, Scope, Send

from seqapp.completion import MOST_TOKENS, BeamNode, GenerationInput, GenerationOutput, Piece, ScoredToken
from seqapp.data.tokenizers import clean
from seqapp.tasks import InputError
from serving.engine import Late, Pieces, Refused
from serving.logs import note
from serving.problems import (
    COMPLETIONS,
    ProblemError,
    Wire,
    check_each,
    documented,
    fields,
    json_type,
    misfit,
    render,
    texts,
    unanswered,
)
from serving.routes import ENGINE_PROBLEMS, TIMING, Deadline, LiveModels, ServerSettings, awaited, written
from serving.routes.inputs import check_limits
from serving.settings import Settings

TASK = "generation"
"""The task whose models these routes ask."""
SEEDS = 2**32
"""Seeds are drawn below this, so that every JSON reader keeps them exact."""

AT_ONCE = 32
"""Events of a stream that are written in one go."""
STOPPING = ProblemError("not-ready", "the server is stopping")
log = logging.getLogger(__name__)
router = APIRouter(tags=[TASK])


class StreamOptions(Wire):
    """What a stream tells besides its pieces."""

    include_usage: bool = Field(default=False, description="count tokens in a chunk of its own at the end")


class CompletionRequest(Wire, GenerationInput):
    """How to go on from one prompt or several. A field that is null has its default."""

    model: str | None = Field(default=None, description="`id` of a live model; by default the first generation model")
    prompt: str | list[str] = Field(  # type: ignore[assignment]  # a list of what the task's input holds one of
        default="", description="a text to go on from, or a list of texts; an empty text starts a new one"
    )
    max_tokens: int = Field(default=16, ge=0, le=MOST_TOKENS, description="most tokens to add")
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="equal seeds give equal texts; null draws one. The prompt at place i is answered with seed + i",
    )
    stop: str | list[str] = Field(  # type: ignore[assignment]
        default=[], max_length=16, description="a text, or texts, before which the completion ends"
    )
    stream: bool = Field(default=False, description="answer with server-sent events, piece by piece")
    stream_options: StreamOptions | None = Field(default=None, description="only with `stream`")
    best_of: int | None = Field(default=None, description="only the value of `n` fits")
    suffix: str | None = Field(default=None, description="not supported: the models read from left to right")
    user: str | None = Field(default=None, description="taken and not used; it changes no answer")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        if isinstance(value, list) and value and all(isinstance(one, int | list) for one in value):
            raise misfit({"": "token ids are not taken; a text or a list of texts fits"})
        return texts(value)

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        found = [value] if isinstance(texts(value) if value != [] else value, str) else value
        if empty := [index for index, one in enumerate(found) if not one]:
            raise misfit({"" if isinstance(value, str) else f"[{empty[0]}]": "a stop text may not be empty"})
        return found

    @field_validator("condition", mode="before")
    @classmethod
    def _class_or_features(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise misfit({"": f"a class or a list of numbers fits, not {json_type(value)}"})
        check_each(value, lambda one: isinstance(one, int | float) and not isinstance(one, bool), "a number")
        return value


class LogProbs(BaseModel):
    """The tokens of a completion and how likely each was, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None = Field(
        description="the likeliest tokens at each place and the chosen one; null where none were asked for"
    )
    text_offset: list[int] = Field(description="of the first character of each token, in code points of `text`")


class Choice(BaseModel):
    """One completion, or in a stream a piece of one."""

    text: str
    index: int = Field(description="the completions of the first prompt come first")
    logprobs: LogProbs | None = None
    finish_reason: Literal["stop", "length"] | None = Field(
        description="stop: the text ended, or a stop text came; length: `max_tokens` were added"
    )
    score: float | None = Field(
        default=None,
        description="log-probability of the tokens added, end of text included, in nats; in a stream in the last piece",
    )


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionAnswer(BaseModel):
    """The completions, or in a stream a chunk of them."""

    id: str = Field(examples=["cmpl-5f3d2c0e9a7b4c1d8e6f0a1b2c3d4e5f"])
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970")
    model: str = Field(description="`id` of the model that answered")
    choices: list[Choice]
    usage: Usage | None = Field(default=None, description="in a stream with `include_usage`: in its last chunk")
    seed: int | None = Field(default=None, description="the same request with this seed has the same answer")
    notes: list[str] = Field(default=[], description="what a person should know, such as unknown characters")
    beams: list[list[BeamNode]] | None = Field(
        default=None, description="with `return_beams`: every candidate of every step of the search"
    )


_REQUESTS: dict[str, Any] = {
    "one prompt": {"value": {"prompt": "The for statement", "max_tokens": 8, "seed": 1}},
    "several": {"value": {"prompt": ["a", "b"], "n": 2, "temperature": 0.7, "top_p": 0.9, "stop": "\n"}},
    "scored": {"value": {"prompt": "The", "max_tokens": 2, "temperature": 0, "logprobs": 2}},
    "beam search": {"value": {"prompt": "The", "max_tokens": 2, "beam_size": 2, "n": 2, "return_beams": True}},
}
_HEAD: dict[str, Any] = {
    "id": "cmpl-5f3d2c0e9a7b4c1d8e6f0a1b2c3d4e5f",
    "object": "text_completion",
    "created": 1_800_000_000,
    "model": "documentation",
}


def _example(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    shared = {"finish_reason": "length", "score": -2.5}
    filled = [{"index": index, **shared, **choice} for index, choice in enumerate(choices)]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"value": {**_HEAD, "choices": filled, "usage": usage, "notes": [], **more}}


_ANSWERS: dict[str, Any] = {
    "one prompt": _example({"text": " is used"}, seed=1),
    "several": _example(*[{"text": text, "finish_reason": "stop"} for text in ("bc", "nd", "e", "ut")], seed=7),
    "scored": _example({
        "text": " w",
        "logprobs": {
            "tokens": [" ", "w"],
            "token_logprobs": [-0.5, -2.0],
            "top_logprobs": [{" ": -0.5, "n": -1.5}, {"w": -2.0, "s": -2.25}],
            "text_offset": [0, 1],
        },
    }),
    "beam search": _example({"text": " w"}, {"text": " s"}, beams=[[
        {"token": " ", "parent": -1, "log_prob": -0.5, "score": -0.5, "kept": True, "finished": False},
        {"token": "n", "parent": -1, "log_prob": -1.5, "score": -1.5, "kept": True, "finished": False},
    ]]),
}  # fmt: skip
_EVENTS = (
    'data: {"id": "cmpl-5f3d...", "object": "text_completion", "created": 1800000000, "model": "documentation", '
    '"choices": [{"text": " is", "index": 0, "logprobs": null, "finish_reason": null}], "seed": 1}\n\n'
    "data: [DONE]\n\n"
)


@router.post(
    COMPLETIONS,
    summary="How does a text go on?",
    response_model=CompletionAnswer,
    responses={
        200: {
            "description": "the completions, n for each prompt, those of the first prompt first; with `stream`, "
            "server-sent events of the same shape, and `data: [DONE]` at the end",
            "content": {
                "application/json": {"examples": _ANSWERS},
                "text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS},
            },
            "headers": TIMING,
        },
        **documented(
            "malformed-body",
            "invalid-request",
            "unknown-model",
            "body-too-large",
            "unsupported-media-type",
            "internal-error",
            *ENGINE_PROBLEMS,
            path=COMPLETIONS,
            wrong=("top_p", "Input should be greater than 0, not 0.0"),
        ),
        "default": {
            **documented("internal-error", path=COMPLETIONS)[500],
            "description": "any other error, in the shape that OpenAI's clients read",
        },
    },
)
async def completions(
    asked: Annotated[CompletionRequest, Body(openapi_examples=_REQUESTS)],
    request: Request,
    models: LiveModels,
    settings: ServerSettings,
    deadline: Deadline,
) -> Response:
    """Texts that go on from each prompt, sampled or searched; with `stream`, piece by piece as they come."""
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    _check(asked, prompts, settings)
    model = models.find(TASK, asked.model)
    seed = secrets.randbelow(SEEDS) if asked.samples and asked.seed is None else asked.seed
    shared = {name: getattr(asked, name) for name in GenerationInput.model_fields}
    inputs = [
        GenerationInput(**{**shared, "prompt": clean(prompt), "seed": None if seed is None else (seed + i) % 2**63})
        for i, prompt in enumerate(prompts)
    ]

    def where(index: int, field: str) -> str:
        return f"prompt[{index}]" if field == "prompt" and not isinstance(asked.prompt, str) else field

    check_limits(model.bundle, inputs, settings, where)
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model.id,
        "seed": seed,
    }
    try:
        if asked.stream:
            pieces = model.stream(inputs, deadline)
            try:
                # What is wrong with the request shows now, while it can still be told by a status.
                first = await awaited(request, anext(pieces))
            except BaseException:
                pieces.close()
                raise
            events = _events(first, pieces, asked, head, request.scope)
            headers = {"Server-Timing": pieces.timing, "X-Model-Version": model.version}
            return _Events(events, pieces, settings.stall_seconds, headers)
        answer = await awaited(request, model.predict(inputs, deadline))
    except InputError as error:
        raise _misfit(error, single=isinstance(asked.prompt, str)) from None
    scored = asked.logprobs is not None or asked.return_beams
    tokens = sum(one.tokens for output in answer.outputs for one in output.completions) * (1 + scored)
    content = await written(tokens + scored * sum(map(len, prompts)),
                            lambda: _answer(answer.outputs, asked, head).model_dump_json())  # fmt: skip
    headers = {"Server-Timing": answer.timing, "X-Model-Version": model.version}
    return Response(content, media_type="application/json", headers=headers)


def _check(asked: CompletionRequest, prompts: Sequence[str], settings: Settings) -> None:
    """Refuse what is too much for this server, and what OpenAI has and this server has not."""
    many = len(prompts)
    wrong = []
    if many > settings.max_items:
        wrong.append(("prompt", f"{many} prompts are too many; at most {settings.max_items} fit in one request"))
    if asked.return_beams and asked.stream:
        wrong.append(("return_beams", "the tree is whole when the search ends; without stream it fits"))
    if asked.return_beams and many > 1:
        wrong.append(("return_beams", f"the tree of one prompt fits in an answer, not of {many}"))
    if asked.best_of not in (None, asked.n):
        wrong.append(("best_of", f"only the value of n, {asked.n}, fits, not {asked.best_of}; beam_size searches for "
                      "likely texts"))  # fmt: skip
    if asked.suffix:
        wrong.append(("suffix", "the models read from left to right and cannot see what follows; null fits"))
    if asked.stream_options and not asked.stream:
        wrong.append(("stream_options", "they fit only with stream: true"))
    if wrong:
        raise fields(*wrong)


def _misfit(error: InputError, *, single: bool) -> ProblemError:
    found = {}
    for index, problem in error.problems.items():
        # The task begins with the field that it means, where that is not the prompt.
        field, told, detail = problem.partition(": ")
        if not told or field not in CompletionRequest.model_fields:
            field, detail = "prompt", problem
        found[field if single or field != "prompt" else f"prompt[{index}]"] = detail
    return fields(*found.items())


def _answer(outputs: Sequence[GenerationOutput], asked: CompletionRequest, head: dict[str, Any]) -> CompletionAnswer:
    completions = [one for output in outputs for one in output.completions]
    read, written = sum(output.prompt_tokens for output in outputs), sum(one.tokens for one in completions)
    note(tokens=written)
    return CompletionAnswer(
        **head,
        choices=[
            Choice(
                text=one.text,
                index=index,
                logprobs=None if one.logprobs is None else _columns(one.logprobs, asked),
                finish_reason=one.finish_reason,
                score=one.score,
            )
            for index, one in enumerate(completions)
        ],
        usage=Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written),
        notes=list(dict.fromkeys(note for output in outputs for note in output.notes)),
        beams=outputs[0].beams,
    )


def _columns(tokens: Sequence[ScoredToken], asked: CompletionRequest) -> LogProbs:
    return LogProbs(
        tokens=[one.token for one in tokens],
        token_logprobs=[one.log_prob for one in tokens],
        # Several tokens may be written alike, such as two halves of a character; the likeliest stands for all.
        top_logprobs=[
            {one.token: one.log_prob} | {top.token: top.log_prob for top in reversed(one.top)} for one in tokens
        ]
        if asked.logprobs
        else None,
        text_offset=[one.offset for one in tokens],
    )


async def _events(
    taken: list[tuple[int, Any]] | None, pieces: Pieces, asked: CompletionRequest, head: dict[str, Any], scope: Scope
) -> AsyncGenerator[bytes, None]:
    """The events of a stream, those of one turn at once; ``taken`` is the first turn."""
    counted = asked.stream_options is not None and asked.stream_options.include_usage
    head = {name: value for name, value in head.items() if value is not None} | ({"usage": None} if counted else {})
    frame = _frame(head)
    read = written = 0
    try:
        while taken is not None:
            for start in range(0, len(taken), AT_ONCE):
                if start:
                    await asyncio.sleep(0)  # many pieces at once shall not hold up the event loop
                yield b"".join(
                    _event(prompt, piece, asked, _frame(head | {"notes": piece.notes}) if piece.notes else frame)
                    for prompt, piece in taken[start : start + AT_ONCE]
                )
            read += sum(piece.prompt_tokens or 0 for _, piece in taken)
            written += sum(piece.tokens for _, piece in taken)
            taken = await anext(pieces, None)
        if counted:
            usage = Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
            yield format_sse_event(data_str="".join(_frame(head | {"usage": usage})))
        yield format_sse_event(data_str="[DONE]")
    except (Refused, Late) as error:
        yield _failure(unanswered(error), scope)
    except Exception:
        request_id = scope["state"]["request_id"]
        log.exception("a stream failed, request %s", request_id)
        failure = ProblemError("internal-error", f"this is not your fault; the server's log has it as {request_id}")
        yield _failure(failure, scope)


def _failure(error: ProblemError, scope: Scope) -> bytes:
    """The last event of a stream that failed; the log has its kind, whatever the status was."""
    scope["state"]["problem"] = error.kind
    _, _, said = render(COMPLETIONS, error, "")
    return format_sse_event(event="error", data_str=said.model_dump_json())


def _frame(head: dict[str, Any]) -> tuple[str, str]:
    """What stands before and after the choices of a chunk, as JSON; it is the same for most chunks of a stream."""
    before, choices, after = (
        CompletionAnswer(**head, choices=[]).model_dump_json(exclude_unset=True).partition('"choices":[')
    )
    return before + choices, after


def _event(prompt: int, piece: Piece, asked: CompletionRequest, frame: tuple[str, str]) -> bytes:
    choice = Choice(
        text=piece.text,
        index=prompt * asked.n + piece.index,
        logprobs=None if asked.logprobs is None else _columns(piece.logprobs, asked),
        finish_reason=piece.finish_reason,
    )
    if piece.score is not None:
        choice.score = piece.score
    before, after = frame
    return format_sse_event(data_str=f"{before}{choice.model_dump_json(exclude_unset=True)}{after}")


class _Events(EventSourceResponse):
    """Sends events, and lets the model go when the reader has gone, or takes nothing for ``patience`` seconds."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], pieces: Pieces, patience: float, headers: dict[str, str]
    ) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self.events, self.pieces, self.patience = events, pieces, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def patient(message: Message) -> None:
            nonlocal started
            started = True
            async with asyncio.timeout(self.patience):
                await send(message)

        try:
            await super().__call__(scope, receive, patient)
        except asyncio.CancelledError:  # the server stops and the time for running requests is over
            if not started:
                raise
            await patient({"type": "http.response.body", "body": _failure(STOPPING, scope)})
        except TimeoutError:
            log.info("the reader of a stream took nothing for %g s, request %s", self.patience,
                     scope["state"]["request_id"])  # fmt: skip
        finally:
            self.pieces.close()
            note(tokens=self.pieces.written)
            await self.events.aclose()

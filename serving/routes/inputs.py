"""Inputs of any task: for the protocols that ask every model in one shape, and read their bodies themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from seqapp.bundle import Bundle
from seqapp.completion import GenerationInput
from seqapp.data.tokenizers import clean
from seqapp.registry import suggest
from seqapp.tasks import InputError
from seqapp.tasks.generation import Generation
from seqapp.tasks.translation import END_COST, SENTENCE_END, Translation
from seqapp.translation import TranslationInput
from serving.problems import MOST_ERRORS, ProblemError, fields, unreadable
from serving.settings import Settings

JSON_MARKS = re.compile(rb'\[|\{|,|"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Texts, commas and opening brackets."""
CSV_MARKS = re.compile(rb'[,\r\n]"(?:[^"]++|"")*+|[,\r\n]')
"""Ends of cells, outside of quotes."""

M = TypeVar("M", bound=BaseModel)
Where = Callable[[int, str], str]
"""The place in a request of a field of an input, by the input's index; of the whole input if the field is ""."""


async def body_of(request: Request, fits: str = "a JSON object") -> bytes:
    """The whole body.

    Args:
        request: whose body it is.
        fits: what the body should hold, for a person.

    Raises:
        ProblemError: if it is empty.
        HTTPException: if it is too large, or its end did not come.
    """
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise HTTPException(400) from error
    if not body:
        raise ProblemError("malformed-body", f"the body is empty; {fits} fits")
    return body


async def check_values(body: bytes, most: int, marks: re.Pattern[bytes] = JSON_MARKS) -> None:
    """Refuse a body of which too much would be made, before it is read: objects take many times its bytes.

    Args:
        body: the whole of it.
        most: marks.
        marks: what stands for a value or ends one, in the language of the body.

    Raises:
        ProblemError: naming the limit.
    """
    if len(body) <= most:
        return
    if b"\0" in body:  # as in UTF-16, where a byte of a letter may look like the end of a text
        many = sum(map(body.count, (b",", b"[", b"{", b'"'))) > most
    else:
        many = await run_in_threadpool(_longer, marks.finditer(body), most)
    if many:
        raise fields(("body", f"more than {most} values, counted by texts, commas and brackets, are too many"))


def _longer(found: Iterator[Any], most: int) -> bool:
    return next(islice(found, most, None), None) is not None


async def parse(model: type[M], body: bytes, settings: Settings) -> M:
    """JSON as a ``model``.

    Raises:
        ProblemError: if it is not JSON, or holds too many values.
        RequestValidationError: if it does not fit.
    """
    await check_values(body, settings.max_values)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError("malformed-body", unreadable(error)) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found, body=value) from None


def request_body(model: type[BaseModel], examples: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The OpenAPI ``requestBody`` of a route that reads its body itself; ``SCHEMAS`` of its module names ``model``.

    Args:
        model: of the JSON.
        examples: of the JSON.
        others: media type objects by media type.
    """
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "examples": dict(examples)}, **others},
        }
    }


def inputs_of(
    bundle: Bundle, records: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], where: Where
) -> list[Any]:
    """What a request asks, as the ``Input`` of a bundle's task.

    Args:
        bundle: whose task it is.
        records: the fields of each input; the task's own text is cleaned.
        shared: fields of all inputs, which come before those of a record.
        where: the place of a field.

    Raises:
        ProblemError: naming what does not fit, and what would.
    """
    kind, text_field = bundle.task.Input, bundle.task.line_field or ""
    known = list(kind.model_fields)
    odd = (name for name in shared if name not in kind.model_fields)
    wrong = {where(0, name): _unknown(name, known) for name in islice(odd, MOST_ERRORS)}
    inputs = []
    for index, record in enumerate(records):
        given = {**record, **shared}
        if len(given) > len(known):  # so some are unknown; pydantic would tell of every one
            odd = (name for name in given if name not in kind.model_fields)
            wrong |= {where(index, name): _unknown(name, known) for name in islice(odd, MOST_ERRORS)}
            break
        if isinstance(given.get(text_field), str):
            given[text_field] = clean(given[text_field])
        try:
            inputs.append(kind.model_validate(given))
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            for one in found:
                name = str(one["loc"][0]) if one["loc"] else ""
                if one["type"] == "extra_forbidden":
                    told = _unknown(name, known)
                else:
                    told = "is required" if one["type"] == "missing" else one["msg"].removeprefix("Value error, ")
                wrong.setdefault(where(index, name), told)
            # What is wrong with a shared field is so in each record.
            if len(wrong) >= MOST_ERRORS or any(one["loc"] and one["loc"][0] in shared for one in found):
                break
    if wrong:
        raise fields(*wrong.items())
    return inputs


def _unknown(name: str, known: Sequence[str]) -> str:
    return f"no such field; {suggest(name[:80], known)}"


def unanswerable(error: InputError, bundle: Bundle, where: Where) -> ProblemError:
    """What a task says of inputs, as a problem.

    Args:
        error: of the task.
        bundle: whose task it is.
        where: the place of a field.
    """
    found = {}
    for index, problem in error.problems.items():
        # The task begins with the field that it means, where that is not the text.
        name, told, detail = problem.partition(": ")
        named = bool(told) and name in bundle.task.Input.model_fields
        found[where(index, name if named else bundle.task.line_field or "")] = detail if named else problem
    return fields(*found.items())


def check_limits(bundle: Bundle, inputs: Sequence[Any], settings: Settings, where: Where) -> None:
    """Refuse what is too much for one request, by the limits of the tasks' own routes.

    Args:
        bundle: that is to answer.
        inputs: of its task.
        settings: with the limits.
        where: the place of a field.

    Raises:
        ProblemError: naming the limit.
    """
    wrong = {
        where(index, name): f"{size} characters; at most {settings.max_characters} fit"
        for index, one in enumerate(inputs)
        for name in ("text", "prompt", "target")
        if (size := len(getattr(one, name, None) or "")) > settings.max_characters
    }
    if not wrong and isinstance(bundle.task, Generation):
        wrong = _too_long_completions(inputs, settings, where)
    if not wrong and isinstance(bundle.task, Translation):
        wrong = _too_long_translations(inputs, bundle.task.beam_size, settings, where)
    if wrong:
        raise fields(*wrong.items())


def _too_long_completions(inputs: Sequence[GenerationInput], settings: Settings, where: Where) -> dict[str, str]:
    wrong = {
        where(index, "max_tokens"): f"{one.max_tokens} tokens; at most {settings.max_tokens} fit"
        for index, one in enumerate(inputs)
        if one.max_tokens > settings.max_tokens
    }
    many = sum(one.n for one in inputs)
    work = sum((one.beam_size or 0) * one.max_tokens for one in inputs)
    told = sum(
        one.n * (one.max_tokens + one.echo * len(one.prompt)) * (1 + one.logprobs)
        for one in inputs
        if one.logprobs is not None
    )
    sums = (
        ("n", many, settings.max_completions, "completions"),
        ("beam_size", work, settings.max_beam_tokens, "prompts x beams x tokens"),
        ("logprobs", told, settings.max_logprobs, "log-probabilities in the answer"),
    )
    return wrong | {
        where(0, name): f"{found} {what} in all; at most {most} fit in one request"
        for name, found, most, what in sums
        if found > most
    }


def _too_long_translations(
    inputs: Sequence[TranslationInput], beam_size: int, settings: Settings, where: Where
) -> dict[str, str]:
    beams = [max(one.beam_size or beam_size, one.alternatives + 1) for one in inputs]
    ends = [len(SENTENCE_END.findall(one.text)) for one in inputs]
    work = sum((len(one.text) + len(one.target or "") + END_COST * end) * many
               for one, many, end in zip(inputs, beams, ends, strict=True))  # fmt: skip
    tokens = sum((one.max_tokens or 0) * (end + 1) * many for one, many, end in zip(inputs, beams, ends, strict=True))
    looked = sum(len(one.text) for one in inputs if one.return_attention)
    sums = (
        ("beam_size", work, settings.max_beam_characters, f"(characters + {END_COST} x sentence ends) x beams"),
        ("max_tokens", tokens, settings.max_beam_tokens, "sentences x tokens x beams"),
        ("return_attention", looked, settings.max_attention_characters, "characters with attention"),
    )
    return {
        where(0, name): f"{found} {what} in all; at most {most} fit in one request"
        for name, found, most, what in sums
        if found > most
    }

"""What is sent and how the answer is read, for every transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

from httpx2 import ServerSentEvent
from pydantic import TypeAdapter, ValidationError

from seqapp.client.answers import (
    Choice,
    Completions,
    DetectedLanguage,
    Label,
    Language,
    Model,
    Reloaded,
    Sentence,
    Translation,
    Usage,
)
from seqapp.client.errors import StreamFailed, UnreadableAnswer, stream_failed

A = TypeVar("A")
"""An answer."""
Texts = list[str] | tuple[str, ...]
"""Several texts; not any sequence, of which a text is one, too."""


@dataclass(frozen=True)
class Call(Generic[A]):
    """One call of the server.

    Args:
        method: of HTTP.
        path: with its leading slash.
        read: the answer, of the body.
        body: to be sent as JSON.
    """

    method: str
    path: str
    read: Callable[[bytes], A]
    body: Mapping[str, Any] | None = None


class CompletionOptions(TypedDict, total=False):
    """How to go on from a prompt: the fields of ``POST /v1/completions``; what is left out has its default there."""

    model: str
    max_tokens: int
    min_tokens: int
    n: int
    stop: str | Sequence[str]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    seed: int
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    logit_bias: Mapping[str, float]
    logprobs: int
    echo: bool
    beam_size: int
    length_penalty: float
    beam_groups: int
    diversity: float
    return_beams: bool
    condition: str | Sequence[float]


class TranslationOptions(TypedDict, total=False):
    """How to translate: the fields of ``POST /translate``; what is left out has its default there."""

    model: str
    alternatives: int
    beam_size: int
    length_penalty: float
    coverage_penalty: float
    return_scores: bool
    return_attention: bool


def sentiment(texts: str | Texts, top_k: int | None, explain: bool, model: str | None) -> Call[Any]:
    """The labels of one text, or of each text of a sequence."""
    body: dict[str, Any] = {"inputs": _texts(texts), "explain": explain}
    if top_k is not None:
        body["parameters"] = {"top_k": top_k}
    if model is not None:
        body["model"] = model
    kind: Any = list[Label] if isinstance(texts, str) else list[list[Label]]
    return Call("POST", "/v1/sentiment", reader(kind), body)


def complete(prompt: str | Texts, options: CompletionOptions) -> Call[Completions]:
    """Texts that go on from a prompt, or from each of a sequence."""
    return Call("POST", "/v1/completions", reader(Completions), {"prompt": _texts(prompt), **options})


def stream(prompt: str | Texts, options: CompletionOptions) -> Call[None]:
    """As :func:`complete`, piece by piece."""
    asked = {"prompt": _texts(prompt), **options, "stream": True, "stream_options": {"include_usage": True}}
    return Call("POST", "/v1/completions", lambda body: None, asked)


def translate(texts: str | Texts, source: str, target: str, options: TranslationOptions) -> Call[list[Translation]]:
    """One text, or each of a sequence, in another language."""
    return Call("POST", "/translate", _translations, {"q": _many(texts), "source": source, "target": target, **options})


def languages() -> Call[list[Language]]:
    """The languages of the live models."""
    return Call("GET", "/languages", reader(list[Language]))


def models() -> Call[list[Model]]:
    """The live models."""

    def read(body: bytes) -> list[Model]:
        listed: _Listed = reader(_Listed)(body)
        return listed.data

    return Call("GET", "/v1/models", read)


def card(model: str) -> Call[str]:
    """The card of a model."""
    return Call("GET", f"/v1/models/{quote(model)}/card", lambda body: body.decode("utf-8"))


def reload(model: str | None) -> Call[list[Reloaded]]:
    """Bring new versions to life."""

    def read(body: bytes) -> list[Reloaded]:
        done: _Reloads = reader(_Reloads)(body)
        return done.data

    return Call("POST", "/v1/models/reload", read, {} if model is None else {"model": model})


def ready() -> Call[None]:
    """Whether the server answers."""
    return Call("GET", "/readyz", lambda body: None)


@cache
def reader(kind: type[A]) -> Callable[[bytes], A]:
    """What reads JSON as a ``kind``; it raises UnreadableAnswer for JSON that is none."""
    adapter = TypeAdapter(kind)

    def read(body: bytes) -> A:
        try:
            return adapter.validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UnreadableAnswer(
                f"the answer is not one that this client reads: {where}: {first['msg']}; is a seqapp server of this "
                "version at the URL?"
            ) from None

    return read


class Events:
    """What the events of a stream have told so far.

    Args:
        request_id: of the answer.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.id: str | None = None
        self.model: str | None = None
        self.seed: int | None = None
        self.usage: Usage | None = None
        self.notes: list[str] = []
        self._done = False

    def take(self, event: ServerSentEvent) -> list[Choice]:
        """The pieces of an event.

        Raises:
            StreamFailed: if it says that the stream failed.
            UnreadableAnswer: if it is nothing that a client knows.
        """
        if event.event == "error":
            raise stream_failed(event.data, self.request_id)
        if event.data == "[DONE]":
            self._done = True
            return []
        chunk: Completions = reader(Completions)(event.data.encode("utf-8"))
        self.id, self.model = chunk.id, chunk.model
        self.seed = self.seed if chunk.seed is None else chunk.seed
        self.usage = chunk.usage or self.usage
        self.notes += [note for note in chunk.notes if note not in self.notes]
        return chunk.choices

    def end(self) -> None:
        """Tell that no event follows.

        Raises:
            StreamFailed: if the last one did not say so.
        """
        if not self._done:
            raise self.cut_off("it ended without its last event")

    def cut_off(self, why: str) -> StreamFailed:
        """What a stream ends with that the connection did not carry to its end."""
        return StreamFailed(f"the stream was cut off: {why}", 200, "cut-off", request_id=self.request_id)


@dataclass
class _Listed:
    data: list[Model]


@dataclass
class _Reloads:
    data: list[Reloaded]


@dataclass
class _Translated:
    translatedText: list[str]  # noqa: N815  (LibreTranslate's name)
    notices: list[list[str]]
    alternatives: list[list[str]] | None = None
    detectedLanguage: list[DetectedLanguage] | None = None  # noqa: N815
    scores: list[float] | None = None
    sentences: list[list[Sentence]] | None = None


def _translations(body: bytes) -> list[Translation]:
    told: _Translated = reader(_Translated)(body)
    columns = (told.notices, told.alternatives, told.detectedLanguage, told.scores, told.sentences)
    if any(column is not None and len(column) != len(told.translatedText) for column in columns):
        raise UnreadableAnswer("the answer does not have as many entries in each of its lists")
    filled = ([None] * len(told.translatedText) if column is None else column for column in columns)
    return [Translation(*row) for row in zip(told.translatedText, *filled, strict=True)]


def _texts(texts: str | Texts) -> str | list[str]:
    return texts if isinstance(texts, str) else list(texts)


def _many(texts: str | Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)

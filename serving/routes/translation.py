"""``POST /translate`` and ``GET /languages``: texts in another language, in the shape LibreTranslate's clients know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import exp
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, field_validator, model_validator

from seqapp.data.languages import best, words
from seqapp.data.tokenizers import clean
from seqapp.tasks import InputError
from seqapp.tasks.translation import Translation
from seqapp.translation import MOST_BEAMS, Sentence, TranslationInput, TranslationOutput
from serving.engine import Answer
from serving.models import LiveModel, Models
from serving.problems import Wire, documented, fields, misfit, texts
from serving.routes import ENGINE_PROBLEMS, MUCH, TIMING, Deadline, LiveModels, ServerSettings, awaited, written
from serving.routes.inputs import check_limits
from serving.settings import Settings

TASK = "translation"
"""The task whose models these routes ask."""
AUTO = "auto"
"""What a request says as its source where the server is to find out."""
NAMES = {
    "af": "Afrikaans", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bangla",
    "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese",
    "ka": "Georgian", "kk": "Kazakh", "ko": "Korean", "la": "Latin", "lt": "Lithuanian", "lv": "Latvian",
    "mk": "Macedonian", "mr": "Marathi", "ms": "Malay", "mt": "Maltese", "nb": "Norwegian Bokmål", "nl": "Dutch",
    "nn": "Norwegian Nynorsk", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili",
    "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""Languages in English, as the Unicode CLDR names them."""

router = APIRouter(tags=[TASK])


class TranslationRequest(Wire):
    """One text or several. A field that is null has its default."""

    q: str | list[str] = Field(description="a text, or a list of texts; none may be empty")
    source: str = Field(description="code of the language of the texts, or `auto`: each text's own, as far as known")
    target: str = Field(description="code of the language wanted; `GET /languages` lists what there is")
    format: Literal["text"] = Field(default="text", description="only `text`; `html` is refused")
    alternatives: int = Field(
        default=0, ge=0, lt=MOST_BEAMS, description="other translations wanted, the best first; there may be fewer"
    )
    api_key: str | None = Field(default=None, description="taken and not used; it changes no answer")
    model: str | None = Field(default=None, description="`id` of a live model; by default the first of the pair")
    beam_size: int | None = Field(
        default=None,
        ge=1,
        le=MOST_BEAMS,
        description="hypotheses kept by the search; by default the model's own, or `alternatives` + 1 if that is more",
    )
    length_penalty: float | None = Field(
        default=None,
        ge=-10,
        le=10,
        allow_inf_nan=False,
        description="rank by log-probability / length ** this; by default the model's own",
    )
    coverage_penalty: float = Field(
        default=0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="above 0 ranks translations lower that leave source tokens without attention",
    )
    return_scores: bool = Field(default=False, description="also tell scores, of the whole and of each sentence")
    return_attention: bool = Field(
        default=False,
        description="also tell where the model looked in each sentence: tokens and a weight for each pair",
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value

    @field_validator("q", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        return texts(value)

    @field_validator("format", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if value == "html":
            raise misfit({"": "html is not supported, its tags would be translated as words; text fits"})
        return value


class DetectedLanguage(BaseModel):
    """The language that a text with the source ``auto`` was taken for."""

    language: str = Field(examples=["en"])
    confidence: float = Field(
        description="in percent, beside the other languages it might have been taken for and the target"
    )


class TranslationAnswer(BaseModel):
    """The translations. Where ``q`` was a list, every field is a list with one entry for each text."""

    translatedText: str | list[str]  # noqa: N815  (LibreTranslate's name)
    alternatives: list[str] | list[list[str]] | None = Field(
        default=None, description="with `alternatives`: the next best translations, the best first"
    )
    detectedLanguage: DetectedLanguage | list[DetectedLanguage] | None = Field(  # noqa: N815  (LibreTranslate's name)
        default=None, description="with the source `auto`"
    )
    scores: float | list[float] | None = Field(
        default=None, description="with `return_scores`: of the whole text, the mean of its sentences' scores"
    )
    sentences: list[Sentence] | list[list[Sentence]] | None = Field(
        default=None,
        description="with `return_scores` or `return_attention`: each sentence as it was translated; its attention has "
        "a row for each target token, with the weight of each source token",
    )
    notices: list[str] | list[list[str]] = Field(
        description="what a person should know, such as a text that is not in the source language"
    )


class Language(BaseModel):
    """A language that live models translate from or into."""

    code: str = Field(description="as in BCP 47", examples=["en"])
    name: str = Field(description="in English", examples=["English"])
    targets: list[str] = Field(description="codes of the languages it is translated into", examples=[["de"]])
    models: dict[str, list[str]] = Field(
        description="for each target the `id` of the models that translate into it; the first is the default",
        examples=[{"de": ["translation-bundled"]}],
    )


_REQUESTS: dict[str, Any] = {
    "one text": {"value": {"q": "A man sleeps.", "source": "en", "target": "de", "format": "text"}},
    "several texts": {"value": {"q": ["A man sleeps.", "A dog runs."], "source": "en", "target": "de"}},
    "found out": {"value": {"q": "A man sleeps.", "source": "auto", "target": "de", "alternatives": 1}},
    "scored": {"value": {"q": "Go.", "source": "en", "target": "de", "beam_size": 2, "return_scores": True}},
    "explained": {"value": {"q": "Go.", "source": "en", "target": "de", "return_attention": True}},
}
_GO = {"source": "Go.", "translation": "Geh.", "score": -0.25, "log_prob": -0.75, "finished": True}
_LOOKED = {
    "source_tokens": [" Go", ".", "<eos>"],
    "target_tokens": [" Geh", ".", "<eos>"],
    "attention": [[0.75, 0.125, 0.125], [0.125, 0.75, 0.125], [0.0, 0.25, 0.75]],
}
_ANSWERS: dict[str, Any] = {
    "one text": {"value": {"translatedText": "Ein Mann schläft.", "notices": []}},
    "several texts": {"value": {"translatedText": ["Ein Mann schläft.", "Ein Hund läuft."], "notices": [[], []]}},
    "found out": {
        "value": {
            "translatedText": "Ein Mann schläft.",
            "alternatives": ["Ein Mann ruht."],
            "detectedLanguage": {"language": "en", "confidence": 99.5},
            "notices": [],
        }
    },
    "scored": {"value": {"translatedText": "Geh.", "scores": -0.25, "sentences": [_GO], "notices": []}},
    "explained": {"value": {"translatedText": "Geh.", "sentences": [{**_GO, **_LOOKED}], "notices": []}},
}


@router.post(
    "/translate",
    summary="What does a text say in another language?",
    response_model=TranslationAnswer,
    responses={
        200: {
            "description": "the translation; for a list of texts every field is a list with one entry each",
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
            path="/translate",
            wrong=("target", "no live model translates en -> xx; en -> de fits"),
        ),
    },
)
async def translate(
    asked: Annotated[TranslationRequest, Body(openapi_examples=_REQUESTS)],
    http: Request,
    models: LiveModels,
    settings: ServerSettings,
    deadline: Deadline,
) -> Response:
    """The translation of each text, sentence by sentence; white space and line ends stay as they are."""
    single = isinstance(asked.q, str)
    given = [asked.q] if isinstance(asked.q, str) else asked.q
    fitting = _fitting(models, asked)
    _check(asked, given, fitting.values(), settings)
    inputs = [
        TranslationInput(
            text=clean(text),
            beam_size=asked.beam_size,
            length_penalty=asked.length_penalty,
            coverage_penalty=asked.coverage_penalty,
            alternatives=asked.alternatives,
            return_attention=asked.return_attention,
        )
        for text in given
    ]

    def where(index: int, field: str) -> str:
        # Of the two that multiply, it is the texts that are too long more often.
        return _place(asked, index) if field == "text" else "q" if field == "beam_size" else field

    for model in fitting.values():
        check_limits(model.bundle, inputs, settings, where)
    detected = None
    try:
        with ExitStack() as held:
            for model in fitting.values():  # one may be swapped while the language is found out
                held.enter_context(model.engine.held())
            if asked.source.casefold() == AUTO and asked.source not in fitting:
                detected = await run_in_threadpool(_detect, fitting, [one.text for one in inputs])
            sources = [one.language for one in detected] if detected else [*fitting] * len(inputs)
            answer = await awaited(http, _ask(fitting, sources, inputs, deadline))
    except InputError as error:
        # The task calls the text by the name it has there.
        wrong = {_place(asked, index): problem.removeprefix("text: ") for index, problem in error.problems.items()}
        raise fields(*wrong.items()) from None

    outputs: list[TranslationOutput] = answer.outputs
    told: dict[str, Any] = {
        "translatedText": [one.text for one in outputs],
        "notices": [one.notices for one in outputs],
    }
    if asked.alternatives:
        told["alternatives"] = [one.alternatives for one in outputs]
    if detected:
        told["detectedLanguage"] = detected
    if asked.return_scores:
        told["scores"] = [one.score for one in outputs]
    if asked.return_scores or asked.return_attention:
        told["sentences"] = [one.sentences for one in outputs]

    def write() -> str:
        found = TranslationAnswer(**{name: values[0] if single else values for name, values in told.items()})
        return found.model_dump_json(exclude_none=True)

    # A sentence whose attention is told holds a number for each pair of tokens.
    things = sum(len(one.sentences) for one in outputs) * (MUCH if asked.return_attention else 1)
    content = await written(things, write)
    versions = dict.fromkeys(fitting[source].version for source in sources)
    headers = {"Server-Timing": answer.timing, "X-Model-Version": ", ".join(versions)}
    return Response(content, media_type="application/json", headers=headers)


@router.get("/languages", summary="Which languages are translated into which?")
async def languages(models: LiveModels) -> list[Language]:
    """Every language of the live translation models, those that are only translated into with no targets."""
    live: dict[str, dict[str, list[str]]] = {}
    for model in models:
        if model.task == TASK and all(_pair(model)):
            source, target = _pair(model)
            live.setdefault(source, {}).setdefault(target, []).append(model.id)
            live.setdefault(target, {})
    return [Language(code=code, name=_name(code), targets=[*into], models=into) for code, into in live.items()]


def _check(asked: TranslationRequest, given: Sequence[str], fitting: Iterable[LiveModel], settings: Settings) -> None:
    """Refuse what is too much for this server, and what cannot be meant."""
    wrong = []
    own = max(_task(model).beam_size for model in fitting)
    beams = asked.beam_size or max(own, asked.alternatives + 1)
    if len(given) > settings.max_items:
        wrong.append(("q", f"{len(given)} texts are too many; at most {settings.max_items} fit in one request"))
    if asked.alternatives >= beams:
        wrong.append(("alternatives", f"a search with {beams} beams finds at most {beams - 1} beside the best; a "
                      f"beam_size of {asked.alternatives + 1} fits"))  # fmt: skip
    if wrong:
        raise fields(*wrong)


def _place(asked: TranslationRequest, index: int) -> str:
    return "q" if isinstance(asked.q, str) else f"q[{index}]"


def _task(model: LiveModel) -> Translation:
    task = model.bundle.task
    assert isinstance(task, Translation)
    return task


def _pair(model: LiveModel) -> tuple[str, str]:
    return _task(model).languages


def _fitting(models: Models, asked: TranslationRequest) -> dict[str, LiveModel]:
    """By its source the first model of each pair that a request may mean; one, unless its source is ``auto``."""
    first = models.find(TASK, asked.model)
    if asked.model and not all(_pair(first)):  # it was trained on texts whose languages nobody named
        return {asked.source: first}
    live = [first] if asked.model else models.each(TASK)
    pairs: dict[tuple[str, str], LiveModel] = {}
    for model in live:
        if all(_pair(model)):
            pairs.setdefault(_pair(model), model)
    source, target = asked.source.casefold(), asked.target.casefold()
    if source == target:
        raise fields(("target", f"it is {asked.target[:40]!r}, and so is source; another language fits"))
    into = {known[0]: model for known, model in pairs.items() if known[1].casefold() == target}
    fitting = into if source == AUTO else {code: model for code, model in into.items() if code.casefold() == source}
    if fitting:
        return fitting
    known = ", ".join(f"{one} -> {other}" for one, other in sorted(pairs)) or "a model by its name"
    who = f"{first.id!r} does not translate" if asked.model else "no live model translates"
    what = f"into {asked.target[:40]!r}" if source == AUTO else f"{asked.source[:40]!r} -> {asked.target[:40]!r}"
    raise fields(("source" if into else "target", f"{who} {what}; what fits: {known}"))


def _detect(fitting: Mapping[str, LiveModel], given: Sequence[str]) -> list[DetectedLanguage]:
    """The source that each text fits best, and how likely that is beside the other sources and the target."""
    known_by = {source: profile for source, model in fitting.items() if (profile := _task(model).profile)}
    sources, profiles = [*known_by] or [*fitting], [*known_by.values()]
    detected = []
    for text in given:
        found, index, sure = words(text), best(profiles, text), 0.0
        if index is not None:
            known = [profile.source for profile in profiles] + [profiles[index].target]
            size = sum(len(word) + 1 for word in found)
            scores = [size * language.letters.score(found) for language in known]
            shares = [exp(score - max(scores)) for score in scores]
            sure = shares[index] / sum(shares)
        detected.append(DetectedLanguage(language=sources[index or 0], confidence=round(100 * sure, 1)))
    return detected


async def _ask(
    fitting: Mapping[str, LiveModel],
    sources: Sequence[str],
    inputs: Sequence[TranslationInput],
    deadline: float | None,
) -> Answer:
    """Answer each input by the model of its source; the times of the models are added up."""
    outputs: dict[int, TranslationOutput] = {}
    queued = computed = 0.0
    for source in dict.fromkeys(sources):
        places = [index for index, one in enumerate(sources) if one == source]
        try:
            answer = await fitting[source].predict([inputs[index] for index in places], deadline)
        except InputError as error:
            raise InputError.of({places[index]: problem for index, problem in error.problems.items()}) from None
        outputs |= zip(places, answer.outputs, strict=True)
        queued, computed = queued + answer.queued, computed + answer.computed
    return Answer([outputs[index] for index in range(len(inputs))], queued, computed)


def _name(code: str) -> str:
    language, _, rest = code.replace("_", "-").partition("-")
    name = NAMES.get(language.lower())
    return code if name is None else f"{name} ({rest})" if rest else name

"""What a server answers, typed; a field that this client does not know is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenWeight:
    """How much a token speaks for (+) or against (-) the best label; offsets count code points of the text."""

    text: str
    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Label:
    """A label of a text and its probability; ``tokens`` are there on the best label, if they were asked for."""

    label: str
    score: float
    tokens: list[TokenWeight] | None = None


@dataclass(frozen=True, slots=True)
class LogProbs:
    """The tokens of a completion and how likely each was, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


@dataclass(frozen=True, slots=True)
class Choice:
    """One completion. In a stream a piece of one, with ``finish_reason`` and ``score`` in its last."""

    text: str
    index: int
    finish_reason: FinishReason | None = None
    logprobs: LogProbs | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class BeamNode:
    """One candidate of one step of a beam search; ``parent`` is its place in the step before, or -1."""

    token: str
    parent: int
    log_prob: float
    score: float
    kept: bool
    group: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Completions:
    """Texts that go on from prompts, those of the first prompt first."""

    id: str
    model: str
    created: int
    choices: list[Choice]
    usage: Usage | None = None
    seed: int | None = None
    notes: list[str] = field(default_factory=list)
    beams: list[list[BeamNode]] | None = None

    @property
    def text(self) -> str:
        """The first completion."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class DetectedLanguage:
    """The language that a text was taken for, and how sure that is, in percent."""

    language: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a translation; ``attention`` has a row for each target token."""

    source: str
    translation: str
    score: float
    log_prob: float
    finished: bool
    source_tokens: list[str] | None = None
    target_tokens: list[str] | None = None
    attention: list[list[float]] | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A text in another language; what was not asked for is None."""

    text: str
    notices: list[str]
    alternatives: list[str] | None = None
    detected: DetectedLanguage | None = None
    score: float | None = None
    sentences: list[Sentence] | None = None


@dataclass(frozen=True, slots=True)
class Language:
    """A language, what it is translated into, and by which models."""

    code: str
    name: str
    targets: list[str]
    models: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Model:
    """A live model; ``default`` if it answers requests of its task that name none.

    ``version`` is that of the registry, or the beginning of the bundle's SHA-256. ``state`` is ``kept`` where something
    newer was asked for and did not go live, for the ``reason`` given. ``weight`` is its share of the requests that ask
    its deployment for any version.
    """

    id: str
    task: str
    version: str
    loaded_at: datetime
    default: bool
    deployment: str = ""
    weight: float = 1.0
    state: str = "live"
    reason: str = ""
    source: str = ""
    alias: str | None = None
    parameters: int = 0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)
    features: int = 0


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did for one version that was asked for; None before where none was live."""

    model: str
    reference: str
    outcome: Literal["unchanged", "swapped"]
    before: str | None
    after: str | None

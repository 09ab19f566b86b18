"""Texts that go on from a prompt: what is asked and what is answered."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_TOKENS = 4096
"""Most tokens in one completion."""
MOST_NGRAM = 64
"""Longest n-gram that may be kept from coming twice."""
MOST_BEAMS = 64
"""Most hypotheses kept in a beam search."""
MOST_COMPLETIONS = 64
"""Most completions of one prompt."""
MOST_NUMBERS = 4096
"""Most numbers in a list of features, and most tokens with a bias."""


def _class_or_numbers(given: Any) -> Any:
    # Of a union pydantic would tell what is wrong with each part, the first of which was not meant.
    if isinstance(given, str | None):
        return given
    numbers = _not_many(given) if isinstance(given, list | tuple) else [None]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < math.inf for n in numbers):
        raise ValueError("a class or a list of finite numbers fits")
    return given


def _not_many(given: Any) -> Any:
    # Before each is looked at: pydantic would tell of every one that is wrong.
    if isinstance(given, dict | list | tuple) and len(given) > MOST_NUMBERS:
        raise ValueError(f"{len(given)} numbers are too many; at most {MOST_NUMBERS} fit")
    return given


class GenerationInput(BaseModel):
    """A prompt to go on from, and how to choose each next token."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(default="", description="text to go on from; empty starts a new text")
    condition: Annotated[str | list[float] | None, BeforeValidator(_class_or_numbers)] = Field(
        default=None, description="for a model trained with one: the class, or the features, that the text depends on"
    )
    max_tokens: int = Field(default=200, ge=0, le=MOST_TOKENS, description="most tokens to add")
    min_tokens: int = Field(
        default=0, ge=0, le=MOST_TOKENS, description="the text does not end before this many, but at a stop text"
    )
    n: int = Field(default=1, ge=1, le=MOST_COMPLETIONS, description="completions wanted")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="equal seeds give equal texts; null draws one")
    temperature: float = Field(
        default=1.0, ge=0, le=100, description="divides the logits before sampling; 0 takes the likeliest token"
    )
    top_k: int | None = Field(default=None, ge=1, description="sample from the k likeliest tokens")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the likeliest tokens that make up this share (nucleus)"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="sample from tokens at least this share as likely as the likeliest"
    )
    typical_p: float = Field(
        default=1.0, gt=0, le=1, description="sample from the most typical tokens that make up this share"
    )
    repetition_penalty: float = Field(default=1.0, gt=0, le=100, description="above 1 makes tokens used before rarer")
    frequency_penalty: float = Field(default=0.0, ge=-100, le=100, description="taken off a logit for each earlier use")
    presence_penalty: float = Field(
        default=0.0, ge=-100, le=100, description="taken off the logit of a token used before"
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, le=MOST_NGRAM, description="no n-gram of this size comes twice; 0 allows it"
    )
    logit_bias: Annotated[
        dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MOST_NUMBERS), BeforeValidator(_not_many)
    ] = Field(default={}, description="added to the logits of tokens, named by their text")
    stop: list[str] = Field(
        fail_fast=True, default=[], description="texts before which the completion ends", max_length=16
    )
    beam_size: int | None = Field(
        default=None, ge=1, le=MOST_BEAMS, description="search with this many hypotheses instead of sampling"
    )
    length_penalty: float = Field(
        default=1.0, ge=-10, le=10, description="beam search ranks by log-probability / length ** this"
    )
    beam_groups: int = Field(default=1, ge=1, le=MOST_BEAMS, description="groups of beams that differ from each other")
    diversity: float = Field(
        default=0.0, ge=0, le=100, description="taken off a logit for each earlier group's beam that chose it"
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="also give each token's log-probability and this many likeliest tokens"
    )
    echo: bool = Field(default=False, description="give the prompt back before the completion, scored with logprobs")
    return_beams: bool = Field(default=False, description="also give every step of the beam search")

    @model_validator(mode="after")
    def _fits_together(self) -> GenerationInput:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}")
        if "" in self.stop:
            raise ValueError("a stop text is empty; one with a character or more fits")
        if self.beam_size is None:
            searched = {"return_beams": self.return_beams, "beam_groups": self.beam_groups > 1,
                        "diversity": self.diversity > 0}  # fmt: skip
            if odd := [name for name, asked in searched.items() if asked]:
                raise ValueError(f"{odd[0]} belongs to a beam search; beam_size: 5, say, would fit beside it")
        elif self.n > self.beam_size:
            raise ValueError(f"n is {self.n}, more than the {self.beam_size} hypotheses that beam_size keeps")
        elif self.beam_size % self.beam_groups:
            raise ValueError(f"beam_size {self.beam_size} cannot be shared by {self.beam_groups} beam_groups evenly")
        return self

    @property
    def samples(self) -> bool:
        """Whether chance decides."""
        return self.beam_size is None and self.temperature > 0 and self.max_tokens > 0

    def changes_nothing(self) -> list[str]:
        """Notes on what was asked for and cannot change the answer."""
        if not self.max_tokens:
            return []
        notes = []
        if self.beam_size is None and self.length_penalty != 1:
            notes.append("length_penalty ranks the hypotheses of a beam search and changes nothing without beam_size")
        if self.samples:
            return notes
        neutral = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "seed": None}
        if self.beam_size is not None:
            neutral["temperature"] = 1.0
        names = [name for name, value in neutral.items() if getattr(self, name) != value]
        why = "temperature 0 takes the likeliest token" if self.beam_size is None else "a beam search draws nothing"
        if names:
            notes.append(f"{why}, so {', '.join(names)} change{'s' if len(names) == 1 else ''} nothing")
        if self.beam_size is None and self.n > 1:
            notes.append(f"{why}, so all {self.n} completions are equal")
        return notes


class TokenChance(BaseModel):
    """A token and how likely the model finds it, before temperature and penalties."""

    token: str
    log_prob: float


class ScoredToken(TokenChance):
    """One token of a completion."""

    offset: int = Field(description="of its first character, counted in the completion's text")
    top: list[TokenChance] = Field(default=[], description="the likeliest tokens at its place")


class Completion(BaseModel):
    """One continuation."""

    text: str
    score: float = Field(description="the model's log-probability of the tokens added, end of text included, in nats")
    tokens: int = Field(description="tokens added")
    finish_reason: Literal["stop", "length"] = Field(
        description="stop: the text ended or a stop text came; length: max_tokens were added"
    )
    logprobs: list[ScoredToken] | None = None


class BeamNode(BaseModel):
    """One candidate of one step of a beam search."""

    token: str
    parent: int = Field(
        description="index, among the nodes of the step before, of the hypothesis it extends; -1 at first"
    )
    log_prob: float = Field(description="of the token")
    score: float = Field(description="log-probability of the hypothesis up to here")
    group: int = Field(default=0, description="which group of beams considered it")
    kept: bool = Field(description="whether it was searched further or finished; else it was pruned")
    finished: bool = Field(default=False, description="whether it ends its hypothesis")


class GenerationOutput(BaseModel):
    """The completions, the best first where they were searched."""

    completions: list[Completion]
    prompt_tokens: int
    seed: int | None = Field(default=None, description="the seed used, where tokens were sampled")
    notes: list[str] = Field(default=[], description="what a person should know, such as unknown characters")
    beams: list[list[BeamNode]] | None = Field(
        default=None, description="the candidates of each step, with return_beams"
    )


class Piece(BaseModel):
    """A part of a completion as it appears."""

    index: int = Field(description="which completion it belongs to")
    text: str
    logprobs: list[ScoredToken] = []
    finish_reason: Literal["stop", "length"] | None = Field(default=None, description="set in the last piece")
    score: float | None = Field(default=None, description="of the whole completion, in the last piece")
    tokens: int = Field(default=0, description="tokens added since the piece of the completion before")
    prompt_tokens: int | None = Field(default=None, description="tokens of the prompt, in the very first piece")
    seed: int | None = Field(default=None, description="the seed used, in the very first piece")
    notes: list[str] = Field(default=[], description="what a person should know, in the very first piece")

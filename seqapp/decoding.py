"""Search over next tokens. It knows no model, only a step: tokens (N,), carry -> logits (N, V), carry.

N rows searched, V vocabulary, t tokens chosen so far, B source rows, K beams of a source row, G groups of beams,
W = K / G beams of a group, U = B G groups searched. Rows of a beam search stand source row by source row, group by
group: N = B K = U W. Log-probabilities are in nats. Parameters of rows are a number for all of them or a tensor (N,).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Carry = Any
"""A tensor, or a tuple of carries; every leaf is ``(N, ...)``."""
StepFn = Callable[[Tensor, Carry], tuple[Tensor, Carry]]
"""tokens (N,), carry -> logits (N, V), carry."""
Processor = Callable[[Tensor, Tensor], Tensor]
"""prefix (N, t), logits (N, V) -> logits (N, V), a new tensor unless nothing changes.

The prefix is what was generated, without the prompt; a processor that counts the prompt is given it when it is made.
An id below 0 in a prefix or a prompt stands for no token. Logits of -inf bar a token. Where all are barred, eos is not.
"""
Sampler = Callable[[Tensor], Tensor]
"""logits (N, V) -> tokens (N,)."""
Rows = float | Tensor
"""One number for all rows, or a tensor (N,)."""

BARRED = -math.inf


def reorder(carry: Carry, rows: Tensor) -> Carry:
    """The carry whose row i was row ``rows[i]``."""
    if isinstance(carry, Tensor):
        return carry.index_select(0, rows)
    return tuple([reorder(leaf, rows) for leaf in carry])


# Processors


@dataclass(frozen=True, slots=True)
class Bias:
    """``logits + bias``; -inf forbids a token.

    Args:
        bias: (V,) or (N, V).
    """

    bias: Tensor

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        return logits + self.bias


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Positive logits of tokens used before are divided by the penalty, others multiplied (Keskar et al. 2019, 4.1).

    Args:
        penalty: above 0; 1 changes nothing, more than 1 makes repetition rarer.
        prompt: (N, P) tokens that count as used before, or None.

    Raises:
        ValueError: if the penalty is not above 0.
    """

    penalty: Rows
    prompt: Tensor | None = None

    def __post_init__(self) -> None:
        _check("repetition_penalty", self.penalty, lambda value: value > 0, "a number above 0")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        penalty = _column(self.penalty)
        bent = torch.where(logits > 0, logits / penalty, logits * penalty)
        # 0 times infinity: what is barred stays barred, whatever the penalty.
        return torch.where((_uses(_join(self.prompt, prefix), logits) > 0) & (logits > BARRED), bent, logits)


@dataclass(frozen=True, slots=True)
class UsePenalty:
    """``logits - frequency * uses - presence * (uses > 0)``, counting what was generated (OpenAI API reference).

    Args:
        frequency: taken off for each earlier use; below 0 makes repetition likelier.
        presence: taken off once a token was used.

    Raises:
        ValueError: if one is not finite.
    """

    frequency: Rows = 0.0
    presence: Rows = 0.0

    def __post_init__(self) -> None:
        _check("frequency_penalty", self.frequency, _is_finite, "a finite number")
        _check("presence_penalty", self.presence, _is_finite, "a finite number")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        uses = _uses(prefix, logits)
        return logits - _column(self.frequency) * uses - _column(self.presence) * (uses > 0)


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    """Bars every token that would make an n-gram come a second time (Paulus et al. 2018, 2.5).

    Args:
        size: n; 1 lets no token come twice.
        prompt: (N, P) tokens whose n-grams count as well, or None; what stands for no token comes first, so that
            n-grams go on from the prompt into the prefix.

    Raises:
        ValueError: if the size is below 1.
    """

    size: int
    prompt: Tensor | None = None

    def __post_init__(self) -> None:
        _check("no_repeat_ngram_size", self.size, lambda value: value >= 1, "1 or more")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        seen = _join(self.prompt, prefix)
        if seen.shape[1] < self.size:
            return logits
        last = seen[:, self.size - 1 :]
        again = last >= 0
        for back in range(1, self.size):
            begun = seen[:, -back, None]
            again &= (seen[:, self.size - 1 - back : seen.shape[1] - back] == begun) & (begun >= 0)
        barred = torch.zeros_like(logits).scatter_add_(1, last.clamp(min=0), again.to(logits.dtype)) > 0
        return logits.masked_fill(barred, BARRED)


@dataclass(frozen=True, slots=True)
class MinimumLength:
    """Bars eos until so many tokens were generated.

    Args:
        eos_id: the token that ends a row.
        tokens: how many, eos not counted.

    Raises:
        ValueError: if it is below 0.
    """

    eos_id: int
    tokens: int | Tensor

    def __post_init__(self) -> None:
        _check("min_tokens", self.tokens, lambda value: value >= 0, "0 or more")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        bent = logits.clone()
        bent[:, self.eos_id].masked_fill_((prefix >= 0).sum(1) < self.tokens, BARRED)
        return bent


def forbid(ids: Sequence[int], size: int) -> Bias:
    """Tokens that are never generated, of a vocabulary of ``size``.

    Raises:
        ValueError: if an id is outside the vocabulary.
    """
    for index in ids:
        if not 0 <= index < size:
            raise ValueError(f"token {index} cannot be forbidden: ids go from 0 to {size - 1}")
    bias = torch.zeros(size)
    bias[list(ids)] = BARRED
    return Bias(bias)


def _bend(processors: Sequence[Processor], prefix: Tensor, logits: Tensor, eos_id: int) -> Tensor:
    """Logits (N, V) after every processor; a row with nothing left may end."""
    bent = logits
    for processor in processors:
        bent = processor(prefix, bent)
    stuck = bent.amax(-1) == BARRED
    if bool(stuck.any()):
        bent = bent.clone()
        bent[stuck, eos_id] = logits[stuck, eos_id].clamp(min=-1e30)
    return bent


def _uses(prefix: Tensor, logits: Tensor) -> Tensor:
    """How often each token stands in the prefix: (N, V)."""
    return torch.zeros_like(logits).scatter_add_(1, prefix.clamp(min=0), (prefix >= 0).to(logits.dtype))


def _join(prompt: Tensor | None, prefix: Tensor) -> Tensor:
    return prefix if prompt is None else torch.cat([prompt, prefix], 1)


def _column(value: Rows) -> Rows:
    return value[:, None] if isinstance(value, Tensor) else value


def _is_finite(value: Any) -> Any:
    return value.isfinite() if isinstance(value, Tensor) else math.isfinite(value)


def _check(name: str, value: Rows, fits: Callable[[Any], Any], what: str) -> None:
    """Raise ValueError unless every number of ``value`` fits."""
    for number in value.tolist() if isinstance(value, Tensor) else [value]:
        if not fits(number):
            raise ValueError(f"{name} is {number}; {what} fits")


# Samplers


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row, the lowest id among equals: logits (N, V) -> (N,)."""
    return logits.argmax(-1)


def keep_top_k(weights: Tensor, k: int | Tensor) -> Tensor:
    """Weights (N, V) of the k likeliest tokens and of those as likely as the k-th; 0 elsewhere."""
    size = weights.shape[1]
    if isinstance(k, Tensor):
        k = k.clamp(max=size)
        least = weights.topk(int(k.max())).values.gather(1, k[:, None] - 1)
    else:
        least = weights.topk(min(k, size)).values[:, -1:]
    return weights.masked_fill(weights < least, 0)


LIKELIEST = 256
"""Tokens that usually hold the nucleus, so that a large vocabulary need not be sorted."""


def keep_top_p(weights: Tensor, p: Rows) -> Tensor:
    """Weights (N, V) of the fewest likeliest tokens whose share is at least p, the nucleus (Holtzman et al. 2020, 3.1).

    Those as likely as the last of them stay; the weights of the others are 0.
    """
    mass = _column(p) * weights.sum(1, keepdim=True, dtype=torch.float64)
    ordered = weights.topk(min(LIKELIEST, weights.shape[1])).values
    total = ordered.cumsum(1, dtype=torch.float64)
    if ordered.shape[1] < weights.shape[1] and bool((total[:, -1:] < mass).any()):
        ordered = weights.sort(1, descending=True).values
        total = ordered.cumsum(1, dtype=torch.float64)
    count = (total - ordered < mass).sum(1, keepdim=True)
    least = ordered.gather(1, count - 1)
    return weights.masked_fill((weights < least) & (_column(p) < 1), 0)


def keep_min_p(weights: Tensor, p: Rows) -> Tensor:
    """Weights (N, V) of tokens at least p times as likely as the likeliest (Nguyen et al. 2024); 0 elsewhere."""
    return weights.masked_fill(weights < _column(p) * weights.amax(1, keepdim=True), 0)


def keep_typical(weights: Tensor, p: Rows) -> Tensor:
    """Weights (N, V) of the tokens whose surprise is nearest to the entropy, up to a share p (Meister et al. 2023, 4).

    Those as near as the last of them stay; the weights of the others are 0.
    """
    probs = weights / weights.sum(1, keepdim=True)
    surprise = -probs.log()
    distance = (surprise - torch.special.entr(probs).sum(1, keepdim=True)).abs()
    ordered, order = distance.sort(1)
    share = probs.gather(1, order)
    before = share.cumsum(1, dtype=torch.float64) - share
    count = (before < _column(p)).sum(1, keepdim=True)
    return weights.masked_fill(distance > ordered.gather(1, count - 1), 0)


class Sample:
    """Draws from ``softmax(logits / temperature)``, cut to likely tokens: top-k, top-p, min-p, typical, in this order.

    Each cut sees the shares that the ones before it left. LAW: a row with seed s gets the same tokens alone as in any
    batch. One object serves one generation: its draws go on where they stand.

    Args:
        seeds: one for each row.
        temperature: 0 takes the likeliest token, the lowest id among equals.
        top_k: how many of the likeliest tokens stay; None keeps all.
        top_p: the share of the nucleus that stays (Holtzman et al. 2020).
        min_p: how likely, measured by the likeliest token, a token must be (Nguyen et al. 2024).
        typical_p: the share of tokens of typical surprise that stays (Meister et al. 2023).

    Raises:
        ValueError: if a parameter is outside its range; when called, if there are not as many rows as seeds.
    """

    BLOCK = 256

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        temperature: Rows = 1.0,
        top_k: int | Tensor | None = None,
        top_p: Rows = 1.0,
        min_p: Rows = 0.0,
        typical_p: Rows = 1.0,
    ) -> None:
        _check("temperature", temperature, lambda value: 0 <= value < math.inf, "a finite number from 0")
        _check("top_p", top_p, lambda value: 0 < value <= 1, "a share above 0, up to 1,")
        _check("min_p", min_p, lambda value: 0 <= value <= 1, "a share from 0 to 1")
        _check("typical_p", typical_p, lambda value: 0 < value <= 1, "a share above 0, up to 1,")
        if top_k is not None:
            _check("top_k", top_k, lambda value: value >= 1, "1 or more")
        for seed in seeds:
            if seed < 0:
                raise ValueError(f"seed is {seed}; a whole number from 0 fits")
        self.temperature, self.top_k, self.top_p, self.min_p, self.typical_p = (
            temperature, top_k, top_p, min_p, typical_p
        )  # fmt: skip
        self._generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self._draws: Iterator[Tensor] = iter(())

    def __call__(self, logits: Tensor) -> Tensor:
        if len(logits) != len(self._generators):
            raise ValueError(f"{len(logits)} rows are sampled with {len(self._generators)} seeds; one for each fits")
        if _off(self.temperature, 0):
            return greedy(logits)
        u = next(self._draws, None)
        if u is None:
            self._draws = self._draw(logits.device)
            u = next(self._draws)
        # Logits divided by less would overflow; the likeliest token has all the share long before.
        temperature = _column(self.temperature)
        warm = temperature.clamp(min=1e-8) if isinstance(temperature, Tensor) else max(temperature, 1e-8)
        weights = (logits / warm).softmax(-1)
        if self.top_k is not None:
            weights = keep_top_k(weights, self.top_k)
        if not _off(self.top_p, 1):
            weights = keep_top_p(weights, self.top_p)
        if not _off(self.min_p, 0):
            weights = keep_min_p(weights, self.min_p)
        if not _off(self.typical_p, 1):
            weights = keep_typical(weights, self.typical_p)
        below = weights.cumsum(1, dtype=torch.float64)
        tokens = torch.searchsorted(below, u * below[:, -1:], right=True).squeeze(1)
        if isinstance(self.temperature, Tensor):
            tokens = torch.where(self.temperature == 0, greedy(logits), tokens)
        return tokens

    def _draw(self, device: torch.device) -> Iterator[Tensor]:
        """Uniform numbers (N, 1) of many steps, far enough below 1 that a sum times one of them is below the sum."""
        draws = np.stack([generator.random(self.BLOCK) for generator in self._generators]) * (1 - 2.0**-50)
        return iter(torch.from_numpy(draws).to(device)[..., None].unbind(1))


def _off(value: Rows, neutral: float) -> bool:
    return not isinstance(value, Tensor) and value == neutral


# Streaming


@dataclass(slots=True)
class Chosen:
    """One step of every row.

    Args:
        tokens: (N,); eos for a row that had ended before.
        log_probs: (N,) the model's own log-probabilities of them, before processors and sampler; 0 after the end.
        live: (N,) whether the row had not ended before, so that its token counts.
        finished: (N,) whether the row has ended, by this eos or before.
        top: with ``top``, the log-probabilities (N, top) and ids (N, top) of the model's likeliest tokens, in order.
    """

    tokens: Tensor
    log_probs: Tensor
    live: Tensor
    finished: Tensor
    top: tuple[Tensor, Tensor] | None = None

    def stop(self, rows: Sequence[int]) -> None:
        """End these rows as if eos had come, for instance because a stop text did."""
        with torch.inference_mode():
            self.finished = self.finished.index_fill(0, torch.tensor(rows, device=self.finished.device).long(), True)


def stream(
    step: StepFn,
    carry: Carry,
    tokens: Tensor,
    *,
    eos_id: int,
    max_steps: int,
    sampler: Sampler = greedy,
    processors: Sequence[Processor] = (),
    top: int = 0,
) -> Iterator[Chosen]:
    """Choose token after token until every row has ended or ``max_steps`` were taken.

    Nothing is computed ahead: a consumer that stops reading, or closes the iterator, stops the work. Rows that have
    ended are carried along and never seen again.

    Args:
        step: tokens (N,), carry -> logits (N, V), carry.
        carry: what was read before ``tokens``; every leaf (N, ...).
        tokens: (N,) the tokens fed first.
        eos_id: the token that ends a row.
        max_steps: most tokens to choose.
        sampler: logits (N, V) -> tokens (N,); :func:`greedy` or a :class:`Sample`.
        processors: change the logits before the sampler, in this order.
        top: how many of the likeliest tokens to give with each step.

    Returns:
        One :class:`Chosen` a step.

    Raises:
        ValueError: if a parameter does not fit; while streaming, if the model gives NaN.
    """
    _check("max_steps", max_steps, lambda value: value >= 0, "0 or more")
    _check("top", top, lambda value: value >= 0, "0 or more")
    return _stream(step, carry, tokens, eos_id, max_steps, sampler, processors, top)


@torch.inference_mode()
def _stream(
    step: StepFn,
    carry: Carry,
    tokens: Tensor,
    eos_id: int,
    max_steps: int,
    sampler: Sampler,
    processors: Sequence[Processor],
    top: int,
) -> Iterator[Chosen]:
    finished = torch.zeros_like(tokens, dtype=torch.bool)
    prefix, ended = tokens.new_empty(len(tokens), 0), 0
    for place in range(max_steps):
        logits, carry = step(tokens, carry)
        all_log_probs = logits.log_softmax(-1)
        if math.isnan(all_log_probs[:, 0].sum().item()):
            _complain_of_nan(all_log_probs.isnan().nonzero()[:, 0], place)
        tokens = sampler(_bend(processors, prefix, logits, eos_id) if processors else logits)
        log_probs = all_log_probs.gather(1, tokens[:, None]).squeeze(1)
        live = finished.logical_not()
        if ended:
            tokens, log_probs = tokens.where(live, eos_id), log_probs.where(live, 0)
        if processors:
            prefix = torch.cat([prefix, tokens[:, None]], 1)
        chosen = Chosen(tokens, log_probs, live, finished | (tokens == eos_id))
        if top:
            likeliest = all_log_probs.topk(min(top, logits.shape[1]))
            chosen.top = likeliest.values, likeliest.indices
        yield chosen
        finished = chosen.finished
        ended = int(finished.sum())
        if ended == len(tokens):
            return


def _complain_of_nan(rows: Tensor, place: int) -> None:
    raise ValueError(
        f"the model gave NaN for row {int(rows.min())} at step {place} (both count from 0); finite logits fit"
    )


@dataclass(frozen=True, slots=True)
class Generated:
    """What a stream chose.

    Args:
        tokens: (N, t), eos after a row's end.
        log_probs: (N, t) the model's own, 0 after a row's end.
        lengths: (N,) tokens of each row, its eos counted.
        finished: (N,) whether the row ended; else it was cut at ``max_steps``.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    finished: Tensor


def generate(
    step: StepFn,
    carry: Carry,
    tokens: Tensor,
    *,
    eos_id: int,
    max_steps: int,
    sampler: Sampler = greedy,
    processors: Sequence[Processor] = (),
) -> Generated:
    """A :func:`stream` read to its end; same arguments and errors."""
    found = list(stream(step, carry, tokens, eos_id=eos_id, max_steps=max_steps, sampler=sampler,
                        processors=processors))  # fmt: skip
    if not found:
        none = torch.zeros(len(tokens), 0, device=tokens.device)
        zeros = torch.zeros_like(tokens)
        return Generated(none.long(), none, zeros, zeros.bool())
    return Generated(
        torch.stack([chosen.tokens for chosen in found], 1),
        torch.stack([chosen.log_probs for chosen in found], 1),
        torch.stack([chosen.live for chosen in found], 1).sum(1),
        found[-1].finished,
    )


class StopStrings:
    """Lets text through up to the first stop text, and holds back what may be the beginning of one.

    The first stop text is the one that is complete first; of those complete at the same character, the longest. What
    comes out does not depend on how the text is split into pieces.

    Args:
        stops: the stop texts.

    Raises:
        ValueError: if one of them is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop text is empty; at least one character fits")
        self.stops = tuple(stops)
        self.stopped = False
        """Whether a stop text has come."""
        self._held = ""

    def push(self, text: str) -> str:
        """What is sure to come before any stop text, now that ``text`` has followed; nothing once stopped."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        longest = max(map(len, self.stops), default=1) - 1
        start = next((start for start in range(max(0, len(text) - longest), len(text)) if self._begins(text[start:])),
                     len(text))  # fmt: skip
        self._held = text[start:]
        return text[:start]

    def finish(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _begins(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stops)


# Beam search


@runtime_checkable
class Narrows(Protocol):
    """A step that is bound to something of each source row, and can be bound to fewer of them."""

    def __call__(self, tokens: Tensor, carry: Carry) -> tuple[Tensor, Carry]: ...
    def take(self, sources: Tensor) -> Narrows:
        """The step of the source rows at these places, (B',)."""
        ...


class Ensemble:
    """Several models of one vocabulary as one step: the mean of their probabilities.

    tokens (N,), one carry each -> log-probabilities (N, V), carries.

    Args:
        steps: of the models.
    """

    def __init__(self, steps: Sequence[Narrows]) -> None:
        self.steps = steps

    def __call__(self, tokens: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        answers = [step(tokens, one) for step, one in zip(self.steps, carry, strict=True)]
        log_probs = torch.stack([logits.log_softmax(-1) for logits, _ in answers])
        return log_probs.logsumexp(0) - math.log(len(answers)), tuple(after for _, after in answers)

    def take(self, sources: Tensor) -> Ensemble:
        """The step of the source rows at these places, (B',)."""
        return Ensemble([step.take(sources) for step in self.steps])


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way to go on.

    Args:
        tokens: without eos.
        log_probs: the model's own log-probability of each token, and of eos at the end if it is finished.
        log_prob: their sum: the model's log-probability of the text.
        search_score: the same sum after the processors; equal unless they change more than what is barred.
        score: what hypotheses are ranked by, ``log_prob / length ** length_penalty``, eos counted in the length.
        finished: whether eos ended it; else it was cut at ``max_steps``.
    """

    tokens: list[int]
    log_probs: list[float]
    log_prob: float
    search_score: float
    score: float
    finished: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node of a search tree.

    Args:
        parent: index, among the nodes of the step before, of the node it extends; -1 at the first step.
        token: what it adds.
        log_prob: the model's log-probability of the token.
        total: the model's log-probability of the hypothesis up to here.
        search_score: the same after the processors.
        kept: whether it was searched further or finished; else it was pruned.
        finished: whether it ends its hypothesis.
        group: which group of beams considered it.
    """

    parent: int
    token: int
    log_prob: float
    total: float
    search_score: float
    kept: bool
    finished: bool
    group: int


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """The answer of a beam search.

    Args:
        rows: for each source row its hypotheses, the best first; fewer than asked for where no more were found.
        trees: for each source row, step by step, the candidates considered; None unless asked for.
    """

    rows: list[list[Hypothesis]]
    trees: list[list[list[Candidate]]] | None = None


@torch.inference_mode()
def beam_search(
    step: StepFn,
    carry: Carry,
    tokens: Tensor,
    *,
    eos_id: int,
    beam_size: int,
    max_steps: int | Sequence[int],
    n_best: int = 1,
    length_penalty: float = 1.0,
    groups: int = 1,
    diversity: float = 0.0,
    processors: Sequence[Processor] = (),
    bonus: Callable[[Carry], Tensor] | None = None,
    return_tree: bool = False,
) -> Hypotheses:
    """Keep the ``beam_size`` best beginnings at every step (Lowerre 1976); rank by log-probability and length.

    Candidates are ranked by the sum of log-probabilities that the processors have seen; they are not normalised again,
    so that what only bars tokens leaves the model's own log-probabilities. Of the 2 W best of a group, an eos among
    the first W finishes its hypothesis and the W best others go on. A source row is done when no live hypothesis can
    come among the n-best finished ones of its group, whatever follows. LAWS: a source row is searched as if it were
    alone; with ``beam_size >= V ** max_steps`` the answer is the best of all sequences.

    Args:
        step: tokens (N,), carry -> logits (N, V), carry.
        carry: what was read before ``tokens``; the ``beam_size`` copies of a source row stand beside each other.
        tokens: (N,) = (B K,) the tokens fed first, copied likewise.
        eos_id: the token that ends a hypothesis.
        beam_size: K; it may be larger than V.
        max_steps: most tokens of a hypothesis, or as many numbers as source rows; those that reach it without eos are
            cut and compete as they are.
        n_best: how many hypotheses to give for each source row.
        length_penalty: 0 ranks by log-probability, which favours short ones; 1 by its mean over tokens.
        groups: G groups of beams, one after the other at every step (Vijayakumar et al. 2018).
        diversity: taken off a candidate for each beam of an earlier group that took the same token at this step.
        processors: change the log-probabilities before candidates are compared, in this order.
        bonus: of a hypothesis that ends, added to its score: the carry after its last step -> (N,) numbers of at most
            0, such as a penalty for what was never looked at.
        return_tree: also give every candidate of every step.

    The step is also called with fewer rows: first with one of each group, if there are no processors; and a step with a
    method ``take`` is narrowed to the source rows that are still searched, whenever one is done.

    Raises:
        ValueError: if a parameter does not fit, or the model gives NaN.
    """
    _check("beam_size", beam_size, lambda value: value >= 1, "1 or more")
    _check("n_best", n_best, lambda value: value >= 1, "1 or more")
    _check("length_penalty", length_penalty, math.isfinite, "a finite number")
    _check("groups", groups, lambda value: value >= 1, "1 or more")
    _check("diversity", diversity, lambda value: 0 <= value < math.inf, "a finite number from 0")
    if n_best > beam_size:
        raise ValueError(f"n_best is {n_best}, more than the {beam_size} beams searched; up to {beam_size} fits")
    if beam_size % groups:
        raise ValueError(f"{beam_size} beams cannot be shared by {groups} groups; a divisor of {beam_size} fits")
    if len(tokens) % beam_size:
        raise ValueError(f"{len(tokens)} rows are not a multiple of the {beam_size} beams of a source row")
    sources = len(tokens) // beam_size
    limits = [max_steps] * sources if isinstance(max_steps, int) else list(max_steps)
    if len(limits) != sources:
        raise ValueError(f"max_steps has {len(limits)} numbers for {sources} source rows; one each fits")
    for limit in limits:
        _check("max_steps", limit, lambda value: value >= 0, "0 or more")

    W = beam_size // groups
    U = sources * groups
    device = tokens.device
    # The beams of a group are alike before the first step: one is enough, unless processors know the rows by number.
    w = W if processors else 1
    if w < W:
        tokens, carry = tokens[::W], reorder(carry, torch.arange(0, len(tokens), W, device=device))
    # Logits stay on the device. What is known of so few candidates is kept in NumPy, whose calls cost less.
    score = np.full((U, w), BARRED, np.float32)
    score[:, 0] = 0
    log_prob = np.zeros((U, w))
    texts: list[_Text] = [()] * (U * w)
    prefix = tokens.new_empty(len(tokens), 0)
    finished = _Finished(np.repeat(limits, groups), n_best, length_penalty)
    tree = _Tree(sources, groups, W) if return_tree else None
    score = finished.cut(texts, log_prob, score, 0, None)
    narrows = isinstance(step, Narrows) and tree is None

    for place in range(max(limits, default=0)):
        logits, carry = step(tokens, carry)
        (U, w), V = score.shape, logits.shape[1]
        extra = None if bonus is None else bonus(carry).view(U, w).double().cpu().numpy()
        before = torch.from_numpy(np.ascontiguousarray(score)).to(device)
        if processors or groups > 1 or tree:
            own = logits.log_softmax(-1)
            bent = _bend(processors, prefix, own, eos_id) if processors else own
            total = before[..., None] + bent.view(U, w, V)
            candidates, places = _best(total, W, groups, diversity, eos_id)
            each = own.view(U, w * V).gather(1, places)
        else:
            candidates, places, each = best_of_logits(logits, before, 2 * W)
        best, index, token_log_prob = (leaf.cpu().numpy() for leaf in (candidates, places, each.double()))
        unit = np.arange(U)[:, None]
        parent, token = np.divmod(index, V)
        if (bad := np.isnan(best)).any():
            _complain_of_nan(torch.from_numpy((W * finished.units[:, None] + parent)[bad]), place)
        sums = log_prob[unit, parent] + token_log_prob
        ends = token == eos_id
        if tree:
            tree.add(parent, token, token_log_prob, sums, best, ends)
        if ends.any():
            finished.end(texts, sums, best, place + 1, parent, token_log_prob, ends[:, :W], extra)
            best = np.where(ends, BARRED, best)
            order = ends.argsort(1, kind="stable")
            best, parent, token, token_log_prob, sums = (
                leaf[unit, order] for leaf in (best, parent, token, token_log_prob, sums)
            )
        score, log_prob, parent, token = (leaf[:, :W] for leaf in (best, sums, parent, token))
        rows, added, values = (w * unit + parent).ravel(), token.ravel(), token_log_prob[:, :W].ravel()
        texts = [(texts[row], one, value) for row, one, value in
                 zip(rows.tolist(), added.tolist(), values.tolist(), strict=True)]  # fmt: skip
        score = finished.cut(texts, log_prob, score, place + 1, None if extra is None else extra[unit, parent])
        settled = finished.settled(log_prob, score, place + 1)
        if settled.any():
            settled = settled.reshape(-1, groups).all(1).repeat(groups)
            score = np.where(settled[:, None], BARRED, score)
        on = (score > BARRED).reshape(sources, -1).any(1)
        if not on.any():
            break
        if narrows and not on.all():
            step = cast(Narrows, step).take(torch.from_numpy(np.flatnonzero(on)).to(device))
            sources, kept = int(on.sum()), on.repeat(groups)
            finished.narrow(kept)
            row_kept = kept.repeat(score.shape[1])
            texts = list(itertools.compress(texts, row_kept))
            score, log_prob, rows, added = score[kept], log_prob[kept], rows[row_kept], added[row_kept]
        tokens = torch.from_numpy(added).to(device)
        if len(rows) != U * w or (rows[1:] <= rows[:-1]).any():
            moved = torch.from_numpy(rows).to(device)
            carry = reorder(carry, moved)
            prefix = prefix.index_select(0, moved) if processors else prefix
        if processors:
            prefix = torch.cat([prefix, tokens[:, None]], 1)

    return Hypotheses(_read(finished.best, groups, n_best), tree.rows if tree else None)


def _best(total: Tensor, W: int, groups: int, diversity: float, eos_id: int) -> tuple[Tensor, Tensor]:
    """The 2 W best candidates of a group, in order: total (U, w, V) -> scores and places in (w, V), (U, 2 W) each."""
    U, w, V = total.shape
    most = min(2 * W, w * V)
    if groups == 1 or not diversity:
        found = total.flatten(1).topk(most)
        return found.values, found.indices
    taken, places = total.new_zeros(U // groups, V), []
    for group in total.view(-1, groups, w, V).unbind(1):
        found = (group - diversity * taken[:, None]).flatten(1).topk(most)
        token = found.indices.remainder(V)
        on = (token != eos_id) & (found.values > BARRED)
        on &= on.cumsum(1) <= W
        taken.scatter_add_(1, token, on.to(taken.dtype))
        places.append(found.indices)
    index = torch.stack(places, 1).flatten(0, 1)
    return total.flatten(1).gather(1, index), index


FOLD = 64
"""Tokens that stand in a column."""
TOGETHER = 64
"""Rows that are normalised together, so that they stay in the processor's cache."""


SMALL = 2**15
"""Logits that are compared at once, as fast."""


def best_of_logits(logits: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best candidates of each unit, or all of them where there are fewer, in order.

    On a CPU the V of each beam are folded into C columns of tokens side by side: the k best stand in the k of the w C
    columns of a unit with the largest maxima, or in the rest that fills no column.

    Args:
        logits: (U w, V) of w beams each.
        score: (U, w) of the beams.
        k: how many.

    Returns:
        their scores, their places in (w, V), and the log-probabilities of their tokens, (U, k) each.
    """
    (U, w), V, C = score.shape, logits.shape[1], logits.shape[1] // FOLD
    size = max(1, TOGETHER // w)
    if size < U and logits.device.type == "cpu":
        parts = [
            best_of_logits(*part, k)
            for part in zip(torch.split(logits, size * w), torch.split(score, size), strict=True)
        ]
        values, places, log_probs = map(torch.cat, zip(*parts, strict=True))
        return values, places, log_probs
    own = logits.log_softmax(-1).view(U, w, V)
    if 4 * k > C or logits.numel() < SMALL or logits.device.type != "cpu":
        best, index = (own + score[..., None]).flatten(1).topk(min(k, w * V))
        return best, index, own.flatten(1).gather(1, index)
    maxima = torch.unflatten(own[..., : C * FOLD], -1, (C, FOLD)).amax(-1) + score[..., None]
    column = maxima.flatten(1).topk(k, sorted=False).indices
    start = FOLD * column + column.div(C, rounding_mode="floor") * (V - C * FOLD)
    index = (start[..., None] + torch.arange(FOLD)).flatten(1)
    if V > C * FOLD:
        rest = (V * torch.arange(w)[:, None] + torch.arange(C * FOLD, V)).flatten()
        index = torch.cat([index, rest.expand(U, -1)], 1)
    log_probs = own.flatten(1).gather(1, index)
    best, order = (log_probs + score.gather(1, index.div(V, rounding_mode="floor"))).topk(k)
    return best, index.gather(1, order), log_probs.gather(1, order)


_Text = tuple[Any, ...]
"""A beginning: the beginning before, its last token and the log-probability of that; () is empty."""


class _Finished:
    """The n-best hypotheses of each unit so far, the best first.

    Args:
        limits: (U,) most tokens of each.
        n_best: how many are kept.
        length_penalty: what they are ranked by.
    """

    def __init__(self, limits: np.ndarray, n_best: int, length_penalty: float) -> None:
        self.best: list[list[Hypothesis]] = [[] for _ in limits]
        self.limits, self.units = limits, np.arange(len(limits))
        self.worst = np.full(len(limits), BARRED)
        """Scores (U,) that one more must surpass."""
        self.n_best, self.length_penalty = n_best, length_penalty
        self.final = np.maximum(limits, 1.0) ** length_penalty

    def end(self, texts: Sequence[_Text], log_prob: np.ndarray, search: np.ndarray, length: int, parent: np.ndarray,
            eos: np.ndarray, which: np.ndarray, extra: np.ndarray | None) -> None:  # fmt: skip
        """Enter the candidates (U, .) that eos ends, ``which`` of the first ones."""
        w = len(texts) // len(which)
        for unit, column in zip(*which.nonzero(), strict=True):
            beam = parent[unit, column]
            more = 0.0 if extra is None else float(extra[unit, beam])
            self._add(unit, texts[w * unit + beam], log_prob[unit, column], search[unit, column], length, more,
                      float(eos[unit, column]))  # fmt: skip

    def cut(self, texts: Sequence[_Text], log_prob: np.ndarray, search: np.ndarray, length: int,
            extra: np.ndarray | None) -> np.ndarray:  # fmt: skip
        """Enter the beams (U, w) of the units whose limit this length is; the search scores, barred there."""
        at_limit = self.limits == length
        if not at_limit.any():
            return search
        w = search.shape[1]
        for unit, beam in itertools.product(at_limit.nonzero()[0], range(w)):
            more = 0.0 if extra is None else float(extra[unit, beam])
            self._add(unit, texts[w * unit + beam], log_prob[unit, beam], search[unit, beam], length, more, None)
        return np.where(at_limit[:, None], BARRED, search)

    def _add(self, unit: int, text: _Text, log_prob: float, search: float, length: int, more: float,
             eos: float | None) -> None:  # fmt: skip
        score = float(log_prob) / max(length, 1) ** self.length_penalty + more
        if search == BARRED or score <= self.worst[unit]:
            return
        tokens, log_probs = [], [] if eos is None else [eos]
        while text:
            text, token, value = text
            tokens.append(token)
            log_probs.append(value)
        found = Hypothesis(tokens[::-1], log_probs[::-1], float(log_prob), float(search), score, eos is not None)
        best = self.best[self.units[unit]]
        bisect.insort(best, found, key=lambda one: -one.score)
        del best[self.n_best :]
        if len(best) == self.n_best:
            self.worst[unit] = best[-1].score

    def settled(self, log_prob: np.ndarray, search: np.ndarray, length: int) -> np.ndarray:
        """(U,) whether no live hypothesis (U, w) of this length can still come among the best.

        Log-probabilities only fall, and a sum below 0 is divided by most at the greatest length if the penalty is
        positive, at the least if it is negative. What a bonus adds is at most 0.
        """
        final = self.final if self.length_penalty >= 0 else (length + 1) ** self.length_penalty
        reach: np.ndarray = np.where(search > BARRED, log_prob, BARRED).max(1) / final
        return self.worst >= reach

    def narrow(self, kept: np.ndarray) -> None:
        """Go on with some of the units alone, those that ``kept`` (U,) names."""
        self.limits, self.units, self.worst, self.final = (
            leaf[kept] for leaf in (self.limits, self.units, self.worst, self.final)
        )


def _read(best: Sequence[Sequence[Hypothesis]], groups: int, n_best: int) -> list[list[Hypothesis]]:
    """The hypotheses of each source row from those of its groups."""
    found = [[one for unit in best[first : first + groups] for one in unit] for first in range(0, len(best), groups)]
    # Two groups may find the same text.
    distinct = [{(tuple(one.tokens), one.finished): one for one in reversed(row)}.values() for row in found]
    return [sorted(row, key=lambda one: -one.score)[:n_best] for row in distinct]


class _Tree:
    """Every candidate of every step, for each source row."""

    def __init__(self, B: int, groups: int, W: int) -> None:
        self.rows: list[list[list[Candidate]]] = [[] for _ in range(B)]
        self.groups, self.W = groups, W
        self._nodes: list[list[int]] = [[-1] * W for _ in range(B * groups)]

    def add(self, *columns: np.ndarray) -> None:
        """One step: parent, token, log-probability of it, of all, search score and end of the candidates (U, 2 W)."""
        lists = [column.tolist() for column in columns]
        for row, steps in enumerate(self.rows):
            nodes: list[Candidate] = []
            for group in range(self.groups):
                unit = row * self.groups + group
                live: list[int] = []
                for place, candidate in enumerate(zip(*(column[unit] for column in lists), strict=True)):
                    parent, token, log_prob, total, search_score, ends = candidate
                    if search_score == BARRED:
                        continue
                    kept = (place if ends else len(live)) < self.W
                    if kept and not ends:
                        live.append(len(nodes))
                    node = self._nodes[unit][parent]
                    nodes.append(Candidate(node, token, log_prob, total, search_score, kept, ends, group))
                self._nodes[unit] = live
            if nodes:
                steps.append(nodes)

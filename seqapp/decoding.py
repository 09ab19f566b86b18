"""Choosing token after token. It knows no model, only a step: tokens (N,), carry -> logits (N, V), carry.

N rows, V vocabulary, t tokens chosen so far. Log-probabilities are in nats. Parameters of rows are a number for all of
them or a tensor (N,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

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


def join_carries(carries: Sequence[Carry]) -> Carry:
    """The rows of all carries, one after the other."""
    if isinstance(carries[0], Tensor):
        return torch.cat(list(carries))
    return tuple([join_carries(leaves) for leaves in zip(*carries, strict=True)])


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
        check("repetition_penalty", self.penalty, lambda value: value > 0, "a number above 0")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        penalty = _column(self.penalty, logits)
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
        check("frequency_penalty", self.frequency, _is_finite, "a finite number")
        check("presence_penalty", self.presence, _is_finite, "a finite number")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        uses = _uses(prefix, logits)
        return logits - _column(self.frequency, logits) * uses - _column(self.presence, logits) * (uses > 0)


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
        check("no_repeat_ngram_size", self.size, lambda value: value >= 1, "1 or more")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        seen, n = _tight(self.prompt, prefix), self.size
        if seen.shape[1] < n:
            return logits
        if n == 1:
            row, place = (seen >= 0).nonzero(as_tuple=True)
        else:  # few places hold the last token, so that few are compared with those before it
            last = seen[:, -1:]
            row, place = ((seen[:, n - 2 : -1] == last) & (last >= 0)).nonzero(as_tuple=True)
        for back in range(2, n):
            begun = seen[row, -back]
            again = (seen[row, place + (n - 1 - back)] == begun) & (begun >= 0)
            row, place = row[again], place[again]
        bent = logits.clone()
        bent[row, seen[row, place + (n - 1)]] = BARRED
        return bent


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
        check("min_tokens", self.tokens, lambda value: value >= 0, "0 or more")

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        bent = logits.clone()
        bent[:, self.eos_id].masked_fill_((prefix >= 0).sum(1) < self.tokens, BARRED)
        return bent


@dataclass(frozen=True, slots=True)
class OnRows:
    """Other processors for some of the rows alone.

    Args:
        rows: (M,) which, each once.
        processors: what changes their logits, in this order; parameters of rows are those of the M.
    """

    rows: Tensor
    processors: Sequence[Processor]

    def __call__(self, prefix: Tensor, logits: Tensor) -> Tensor:
        before, bent = prefix.index_select(0, self.rows), logits.index_select(0, self.rows)
        for processor in self.processors:
            bent = processor(before, bent)
        return logits.index_copy(0, self.rows, bent)


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


def bend(processors: Sequence[Processor], prefix: Tensor, logits: Tensor, eos_id: int) -> Tensor:
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


def _tight(prompt: Tensor | None, prefix: Tensor) -> Tensor:
    """As :func:`_join`, with what stands for no token before all others, so that a text has no gap."""
    seen = _join(prompt, prefix)
    gap = (prefix < 0).sum(1, keepdim=True)
    if prompt is None or not bool(gap.any()):
        return seen
    place = torch.arange(seen.shape[1], device=seen.device)
    source = torch.where(place < prompt.shape[1] + gap, place - gap, place)
    return seen.gather(1, source.clamp(min=0)).masked_fill(source < 0, -1)


def _column(value: Rows, like: Tensor) -> Rows:
    """Beside (N, V) numbers, of their dtype."""
    return value[:, None].to(like.dtype) if isinstance(value, Tensor) else value


def _is_finite(value: Any) -> Any:
    return value.isfinite() if isinstance(value, Tensor) else math.isfinite(value)


def check(name: str, value: Rows, fits: Callable[[Any], Any], what: str) -> None:
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
        least = _largest(weights, int(k.max())).gather(1, k[:, None] - 1)
    else:
        least = _largest(weights, min(k, size))[:, -1:]
    return weights.masked_fill(weights < least, 0)


LIKELIEST = 256
"""Tokens that usually hold the nucleus, so that a large vocabulary need not be sorted."""


def keep_top_p(weights: Tensor, p: Rows) -> Tensor:
    """Weights (N, V) of the fewest likeliest tokens whose share is at least p, the nucleus (Holtzman et al. 2020, 3.1).

    Those as likely as the last of them stay; the weights of the others are 0.
    """
    total = weights.sum(1, keepdim=True, dtype=torch.float64)
    mass = _column(p, total) * total
    ordered = _largest(weights, min(LIKELIEST, weights.shape[1]))
    total = ordered.cumsum(1, dtype=torch.float64)
    if ordered.shape[1] < weights.shape[1] and bool((total[:, -1:] < mass).any()):
        ordered = _largest(weights, weights.shape[1])
        total = ordered.cumsum(1, dtype=torch.float64)
    count = (total - ordered < mass).sum(1, keepdim=True)
    least = ordered.gather(1, count - 1)
    return weights.masked_fill((weights < least) & (_column(p, mass) < 1), 0)


def _largest(weights: Tensor, k: int) -> Tensor:
    """The k largest numbers of each row, the largest first: weights (N, V) -> (N, k)."""
    if weights.device.type != "cpu" or weights.dtype not in (torch.float32, torch.float64):
        return weights.topk(k).values
    # NumPy sorts numbers without their places, several at once, in a small part of the time.
    rest, found = weights.shape[1] - k, weights.detach().numpy()
    if rest:
        found = np.partition(found, rest, 1)[:, rest:]
    return torch.from_numpy(np.sort(found, 1)).flip(1)


def keep_min_p(weights: Tensor, p: Rows) -> Tensor:
    """Weights (N, V) of tokens at least p times as likely as the likeliest (Nguyen et al. 2024); 0 elsewhere."""
    return weights.masked_fill(weights < _column(p, weights) * weights.amax(1, keepdim=True), 0)


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
    count = (before < _column(p, before)).sum(1, keepdim=True)
    return weights.masked_fill(distance > ordered.gather(1, count - 1), 0)


EVERY = 2**62
"""A ``top_k`` that keeps all tokens of a row."""
BLOCK = 256


def uniform(seed: int) -> Iterator[float]:
    """Random numbers from 0, far enough below 1 that a sum times one of them is below the sum.

    Raises:
        ValueError: if the seed is below 0.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; a whole number from 0 fits")
    generator = np.random.Generator(np.random.PCG64(seed))
    return (number for _ in itertools.count() for number in (generator.random(BLOCK) * (1 - 2.0**-50)).tolist())


class Sample:
    """Draws from ``softmax(logits / temperature)``, cut to likely tokens: top-k, top-p, min-p, typical, in this order.

    Each cut sees the shares that the ones before it left. LAW: a row with seed s gets the same tokens alone as in any
    batch. One object serves one generation: its draws go on where they stand. A row costs what its own parameters
    ask for, whatever those beside it do.

    Args:
        seeds: one for each row, or what :func:`uniform` made of one, which goes on where it stands.
        temperature: 0 takes the likeliest token, the lowest id among equals.
        top_k: how many of the likeliest tokens stay; None, or :data:`EVERY` for a row, keeps all.
        top_p: the share of the nucleus that stays (Holtzman et al. 2020).
        min_p: how likely, measured by the likeliest token, a token must be (Nguyen et al. 2024).
        typical_p: the share of tokens of typical surprise that stays (Meister et al. 2023).

    Raises:
        ValueError: if a parameter is outside its range; when called, if there are not as many rows as seeds.
    """

    def __init__(
        self,
        seeds: Sequence[int | Iterator[float]],
        *,
        temperature: Rows = 1.0,
        top_k: int | Tensor | None = None,
        top_p: Rows = 1.0,
        min_p: Rows = 0.0,
        typical_p: Rows = 1.0,
    ) -> None:
        check("temperature", temperature, lambda value: 0 <= value < math.inf, "a finite number from 0")
        check("top_p", top_p, lambda value: 0 < value <= 1, "a share above 0, up to 1,")
        check("min_p", min_p, lambda value: 0 <= value <= 1, "a share from 0 to 1")
        check("typical_p", typical_p, lambda value: 0 < value <= 1, "a share above 0, up to 1,")
        top_k = EVERY if top_k is None else top_k
        check("top_k", top_k, lambda value: value >= 1, "1 or more")
        draws = [uniform(seed) if isinstance(seed, int) else seed for seed in seeds]
        self._rows = len(draws)
        self._drawn = _where(temperature, 0, self._rows)
        if self._drawn is not None:
            draws = [draws[row] for row in self._drawn.tolist()]
        self._draws = draws

        def own(value: Any) -> Any:
            return value[self._drawn] if isinstance(value, Tensor) and self._drawn is not None else value

        # Logits divided by less would overflow; the likeliest token has all the share long before.
        temperature = own(temperature)
        self._warm = temperature.clamp(min=1e-8) if isinstance(temperature, Tensor) else max(temperature, 1e-8)
        cuts: list[tuple[Callable[[Tensor, Any], Tensor], Any, float]] = [
            (keep_top_k, top_k, EVERY), (keep_top_p, top_p, 1), (keep_min_p, min_p, 0), (keep_typical, typical_p, 1)
        ]  # fmt: skip
        self._cuts = []
        for cut, every, neutral in cuts:
            value = own(every)
            rows = _where(value, neutral, len(draws))
            if rows is None or len(rows):
                self._cuts.append((cut, value[rows] if isinstance(value, Tensor) and rows is not None else value, rows))

    def __call__(self, logits: Tensor) -> Tensor:
        if len(logits) != self._rows:
            raise ValueError(f"{len(logits)} rows are sampled with {self._rows} seeds; one for each fits")
        if self._drawn is None:
            return self._draw(logits)
        tokens = greedy(logits)
        if len(self._drawn):
            tokens[self._drawn] = self._draw(logits.index_select(0, self._drawn))
        return tokens

    def _draw(self, logits: Tensor) -> Tensor:
        u = torch.tensor([next(draws) for draws in self._draws], dtype=torch.float64, device=logits.device)
        weights = (logits / _column(self._warm, logits)).softmax(-1)
        for cut, value, rows in self._cuts:
            if rows is None:
                weights = cut(weights, value)
            else:
                weights.index_copy_(0, rows, cut(weights.index_select(0, rows), value))
        below = weights.cumsum(1, dtype=torch.float64)
        return torch.searchsorted(below, u[:, None] * below[:, -1:], right=True).squeeze(1)


def _where(value: Rows, neutral: float, rows: int) -> Tensor | None:
    """The rows whose number is another than ``neutral``, or None where all rows' are."""
    if not isinstance(value, Tensor):
        return torch.empty(0, dtype=torch.int64) if value == neutral else None
    found = (value != neutral).nonzero()[:, 0]
    return None if len(found) == rows else found


# Rows that grow side by side


class Choice(NamedTuple):
    """One step of some rows.

    Args:
        tokens: (N,) chosen.
        log_probs: (N,) the model's own log-probabilities of them, before processors and sampler.
        top: with ``top``, log-probabilities and ids of the model's likeliest tokens, in order, (M, top) each.
        nan: the rows for which the model gave NaN; what was chosen for them means nothing.
    """

    tokens: Tensor
    log_probs: Tensor
    top: tuple[Tensor, Tensor] | None
    nan: list[int]


@dataclass(slots=True)
class Growing:
    """Rows that choose token after token; between two steps some are taken out and others put beside them.

    LAW: a row chooses what it chooses alone, whatever stands beside it.

    Args:
        carry: what was read before ``tokens``; every leaf (N, ...).
        tokens: (N,) that each row reads next.
        prefix: (N, t) chosen so far; a row that has chosen fewer begins with -1.
    """

    carry: Carry
    tokens: Tensor
    prefix: Tensor

    @staticmethod
    def begin(carry: Carry, tokens: Tensor) -> Growing:
        """Rows that have chosen nothing yet."""
        return Growing(carry, tokens, tokens.new_empty(len(tokens), 0))

    @staticmethod
    def join(parts: Sequence[Growing]) -> Growing:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.prefix.shape[1] for part in parts)
        return Growing(
            join_carries([part.carry for part in parts]),
            torch.cat([part.tokens for part in parts]),
            torch.cat([pad(part.prefix, (width - part.prefix.shape[1], 0), value=-1) for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Sequence[int]) -> Growing:
        """Some of the rows, in this order."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.tokens.device)
        prefix = self.prefix.index_select(0, index)
        unused = int((prefix < 0).all(0).sum()) if len(rows) else 0
        return Growing(reorder(self.carry, index), self.tokens.index_select(0, index), prefix[:, unused:])

    def step(
        self,
        step: StepFn,
        *,
        eos_id: int,
        sampler: Sampler = greedy,
        processors: Sequence[Processor] = (),
        top: int = 0,
        top_of: Tensor | None = None,
    ) -> Choice:
        """Choose one token for each row.

        Args:
            step: tokens (N,), carry -> logits (N, V), carry.
            eos_id: the token that a row with nothing else left takes.
            sampler: logits (N, V) -> tokens (N,).
            processors: change the logits before the sampler, in this order.
            top: how many of the likeliest tokens to give.
            top_of: (M,) the rows for which to give them; None stands for all.
        """
        logits, carry = step(self.tokens, self.carry)
        log_probs = logits.log_softmax(-1)
        nan: list[int] = []
        if math.isnan(log_probs[:, 0].sum().item()):
            bad = log_probs.isnan().any(1)
            nan = bad.nonzero()[:, 0].tolist()
            logits = logits.masked_fill(bad[:, None], 0)
        tokens = sampler(bend(processors, self.prefix, logits, eos_id) if processors else logits)
        likeliest = None
        if top:
            found = log_probs if top_of is None else log_probs.index_select(0, top_of)
            likeliest = found.topk(min(top, logits.shape[1]))
        self.carry, self.tokens = carry, tokens
        if processors:
            self.prefix = torch.cat([self.prefix, tokens[:, None]], 1)
        own = log_probs.gather(1, tokens[:, None]).squeeze(1)
        return Choice(tokens, own, None if likeliest is None else (likeliest.values, likeliest.indices), nan)

    def end(self, rows: Tensor, eos_id: int) -> None:
        """Let rows, (N,) of bool, have chosen eos in the last step."""
        self.tokens = self.tokens.masked_fill(rows, eos_id)
        if self.prefix.shape[1]:
            self.prefix[:, -1] = self.tokens


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
    check("max_steps", max_steps, lambda value: value >= 0, "0 or more")
    check("top", top, lambda value: value >= 0, "0 or more")
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
    growing, ended = Growing.begin(carry, tokens), 0
    for place in range(max_steps):
        choice = growing.step(step, eos_id=eos_id, sampler=sampler, processors=processors, top=top)
        if choice.nan:
            raise nan_at(min(choice.nan), place)
        live, log_probs = finished.logical_not(), choice.log_probs
        if ended:
            growing.end(finished, eos_id)
            log_probs = log_probs.where(live, 0)
        chosen = Chosen(growing.tokens, log_probs, live, finished | (growing.tokens == eos_id), choice.top)
        yield chosen
        finished = chosen.finished
        ended = int(finished.sum())
        if ended == len(tokens):
            return


def nan_at(row: int, place: int) -> ValueError:
    """The error of a row for which the model gave NaN, at the step ``place``; both count from 0."""
    return ValueError(f"the model gave NaN for row {row} at step {place} (both count from 0); finite logits fit")


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

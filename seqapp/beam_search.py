"""Beam search over next tokens. It knows no model, only a step: tokens (N,), carry -> logits (N, V), carry.

N rows searched, V vocabulary, t tokens chosen so far, B source rows, K beams of a source row, G groups of beams,
W = K / G beams of a group, U = B G groups searched. Rows stand source row by source row, group by group:
N = B K = U W. Before its first step a group may have fewer than W beams, w. Log-probabilities are in nats.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from seqapp.decoding import BARRED, Carry, Processor, StepFn, bend, check, join_carries, nan_at, reorder


@runtime_checkable
class BoundStep(Protocol):
    """A step that is bound to something of each source row, such as what an encoder made of it."""

    def __call__(self, tokens: Tensor, carry: Carry) -> tuple[Tensor, Carry]: ...
    def take(self, sources: Tensor) -> BoundStep:
        """The step of the source rows at these places, (B',)."""
        ...

    def join(self, other: Any, carry: Carry, joining: Carry) -> tuple[BoundStep, Carry]:
        """The step of these source rows and, after them, of another's; with its carry, made of both."""
        ...


class Ensemble:
    """Several models of one vocabulary as one step: the mean of their probabilities.

    tokens (N,), one carry each -> log-probabilities (N, V), carries.

    Args:
        steps: of the models.
    """

    def __init__(self, steps: Sequence[BoundStep]) -> None:
        self.steps = steps

    def __call__(self, tokens: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        answers = [step(tokens, one) for step, one in zip(self.steps, carry, strict=True)]
        log_probs = torch.stack([logits.log_softmax(-1) for logits, _ in answers])
        return log_probs.logsumexp(0) - math.log(len(answers)), tuple(after for _, after in answers)

    def take(self, sources: Tensor) -> Ensemble:
        """As of every bound step."""
        return Ensemble([step.take(sources) for step in self.steps])

    def join(self, other: Ensemble, carry: Carry, joining: Carry) -> tuple[Ensemble, Carry]:
        """As of every bound step."""
        joined = [step.join(*each) for step, *each in zip(self.steps, other.steps, carry, joining, strict=True)]
        return Ensemble([step for step, _ in joined]), tuple(carry for _, carry in joined)


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


class Found(NamedTuple):
    """What was found for one source row.

    Args:
        hypotheses: the best first; fewer than asked for where no more were found.
        tree: step by step, the candidates considered; None unless asked for.
    """

    hypotheses: list[Hypothesis]
    tree: list[list[Candidate]] | None = None


class BeamSearch:
    """A search that source rows join and leave between its steps; :func:`beam_search` tells what it finds.

    LAW: each is searched as if it were alone, whoever joins and leaves, up to the rounding of the model.

    All inside are searched alike: source rows with other options take another search. :meth:`join` starts some, each
    named by a key; :meth:`advance` takes one step of all inside and tells of those that are done, and so have left::

        search = BeamSearch(eos_id=EOS, beam_size=5, processors=lambda keys: processors_of(keys))
        while waiting or len(search):
            if waiting:
                step, carry, tokens = model.start(prompts_of(waiting), copies=5)
                search.join(waiting, step, carry, tokens, max_steps)
            for key, found in search.advance():
                ...

    A step that is a :class:`BoundStep` is narrowed and joined as source rows come and go. Any other knows rows by their
    tokens and carry alone, so that one of those given serves all.

    Args:
        eos_id: the token that ends a hypothesis.
        beam_size: K.
        n_best: how many hypotheses to give for each source row.
        length_penalty: as of :func:`beam_search`, and so are the others.
        groups: G.
        diversity: between the groups.
        processors: keys of source rows, in order -> what changes the logits of their rows, K of each; asked anew when
            some came or went. The prefix of a row that is younger than others begins with -1.
        bonus: of a hypothesis that ends.
        return_tree: also give every candidate of every step.

    Raises:
        ValueError: if a parameter does not fit.
    """

    def __init__(
        self,
        *,
        eos_id: int,
        beam_size: int,
        n_best: int = 1,
        length_penalty: float = 1.0,
        groups: int = 1,
        diversity: float = 0.0,
        processors: Callable[[Sequence[Any]], Sequence[Processor]] | None = None,
        bonus: Callable[[Carry], Tensor] | None = None,
        return_tree: bool = False,
    ) -> None:
        check("beam_size", beam_size, lambda value: value >= 1, "1 or more")
        check("n_best", n_best, lambda value: value >= 1, "1 or more")
        check("length_penalty", length_penalty, math.isfinite, "a finite number")
        check("groups", groups, lambda value: value >= 1, "1 or more")
        check("diversity", diversity, lambda value: 0 <= value < math.inf, "a finite number from 0")
        if n_best > beam_size:
            raise ValueError(f"n_best is {n_best}, more than the {beam_size} beams searched; up to {beam_size} fits")
        if beam_size % groups:
            raise ValueError(f"{beam_size} beams cannot be shared by {groups} groups; a divisor of {beam_size} fits")
        self.eos_id, self.beam_size, self.n_best, self.groups = eos_id, beam_size, n_best, groups
        self.length_penalty, self.diversity = length_penalty, diversity
        self.processors, self.bonus, self.return_tree = processors, bonus, return_tree
        self._sources: list[_Source] = []
        self._left: set[Hashable] = set()
        self._done: list[tuple[Any, Found | ValueError]] = []
        self._joined = 0
        self._rows_of_step = 0
        self._step: StepFn
        self._carry: Carry
        self._tokens: Tensor
        self._prefix: Tensor
        self._bent_by: Sequence[Processor] | None = None
        # Logits stay on the device. What is known of so few candidates is kept in NumPy, whose calls cost less.
        self._score: np.ndarray
        self._log_prob: np.ndarray
        self._texts: list[_Text] = []
        self._units: _Units

    def __len__(self) -> int:
        return len(self._done) + len(self._sources) - len(self._left)

    @property
    def keys(self) -> list[Any]:
        """Of the source rows inside."""
        return [key for key, _ in self._done] + [one.key for one in self._sources if one.key not in self._left]

    @torch.inference_mode()
    def join(
        self, keys: Sequence[Hashable], step: StepFn, carry: Carry, tokens: Tensor, max_steps: int | Sequence[int]
    ) -> None:
        """Take in B more source rows, which the next step searches.

        Args:
            keys: one each, which none inside has.
            step: tokens (N,), carry -> logits (N, V), carry.
            carry: what was read before ``tokens``; the K copies of a source row stand beside each other.
            tokens: (N,) = (B K,) the tokens fed first, copied likewise.
            max_steps: most tokens of a hypothesis, or as many numbers as source rows.

        Raises:
            ValueError: if rows or numbers are not as many as they must be, or a key is inside.
        """
        limits = [max_steps] * len(keys) if isinstance(max_steps, int) else list(max_steps)
        if len(limits) != len(keys):
            raise ValueError(f"max_steps has {len(limits)} numbers for {len(keys)} source rows; one each fits")
        for limit in limits:
            check("max_steps", limit, lambda value: value >= 0, "0 or more")
        if len(tokens) != len(keys) * self.beam_size:
            raise ValueError(f"{len(tokens)} rows are given for {len(keys)} source rows; {self.beam_size} each fit")
        self._forget()
        if len({*self.keys, *keys}) < len(self) + len(keys):
            raise ValueError("a key is that of a source row inside; another one fits")
        W = self.beam_size // self.groups
        sources = [_Source(key, (self._joined + place) * self.beam_size, _Tree(self.groups, W)
                           if self.return_tree else None) for place, key in enumerate(keys)]  # fmt: skip
        self._joined += len(keys)
        nothing = Found([Hypothesis([], [], 0.0, 0.0, 0.0, False)], [] if self.return_tree else None)
        self._done += [(key, nothing) for key, limit in zip(keys, limits, strict=True) if not limit]
        on = np.flatnonzero(limits)
        if not len(on):
            return
        # The beams of a group are alike before the first step: one is enough, unless others have gone on to more, or
        # processors know the rows by number.
        w = W if self.processors else self._score.shape[1] if self._sources else 1
        if w < W or len(on) < len(keys):
            units = (on[:, None] * self.groups + np.arange(self.groups)).ravel()
            rows = torch.from_numpy((W * units[:, None] + np.arange(w)).ravel()).to(tokens.device)
            tokens, carry = tokens.index_select(0, rows), reorder(carry, rows)
        if len(on) < len(keys):
            sources, limits = [sources[place] for place in on], [limits[place] for place in on]
            if isinstance(step, BoundStep):
                step = step.take(torch.from_numpy(on).to(tokens.device))
        U = len(on) * self.groups
        score = np.full((U, w), BARRED, np.float32)
        score[:, 0] = 0
        units_of_these = _Units(np.repeat(np.array(limits, float), self.groups), self.n_best, self.length_penalty)
        self._bent_by = None
        if not self._sources:
            self._step, self._carry, self._tokens, self._rows_of_step = step, carry, tokens, len(tokens)
            self._score, self._log_prob, self._units = score, np.zeros((U, w)), units_of_these
            self._prefix = tokens.new_empty(len(tokens), 0)
        else:
            if isinstance(self._step, BoundStep):
                self._step, self._carry = self._step.join(step, self._carry, carry)
            else:
                self._carry = join_carries([self._carry, carry])
                if len(tokens) > self._rows_of_step:  # a step may be made for a number of rows, and serves any
                    self._step, self._rows_of_step = step, len(tokens)
            self._tokens = torch.cat([self._tokens, tokens])
            self._score = np.concatenate([self._score, score])
            self._log_prob = np.concatenate([self._log_prob, np.zeros((U, w))])
            self._units.join(units_of_these)
            if self.processors:
                self._prefix = torch.cat([self._prefix, tokens.new_full((len(tokens), self._prefix.shape[1]), -1)])
        self._sources += sources
        self._texts += [()] * (U * w)

    def leave(self, key: Hashable) -> None:
        """Forget a source row: no step is taken for it any more. Nothing happens if it is not inside."""
        self._done = [one for one in self._done if one[0] != key]
        if any(one.key == key for one in self._sources):
            self._left.add(key)

    @torch.inference_mode()
    def advance(self) -> list[tuple[Any, Found | ValueError]]:
        """Search one step further.

        Returns:
            of each source row that is done its key and what was found, or an error if the model gave NaN for it.
        """
        self._forget()
        told, self._done = self._done, []
        if not self._sources:
            return told
        W, groups, units, texts = self.beam_size // self.groups, self.groups, self._units, self._texts
        if self._bent_by is None:
            self._bent_by = self.processors([one.key for one in self._sources]) if self.processors else ()
        logits, self._carry = self._step(self._tokens, self._carry)
        (U, w), V, device = self._score.shape, logits.shape[1], logits.device
        extra = None if self.bonus is None else self.bonus(self._carry).view(U, w).double().cpu().numpy()
        before = torch.from_numpy(np.ascontiguousarray(self._score)).to(device)
        if self._bent_by or groups > 1 or self.return_tree:
            own = logits.log_softmax(-1)
            bent = bend(self._bent_by, self._prefix, own, self.eos_id) if self._bent_by else own
            total = before[..., None] + bent.view(U, w, V)
            candidates, places = _best(total, W, groups, self.diversity, self.eos_id)
            each = own.view(U, w * V).gather(1, places)
        else:
            candidates, places, each = best_of_logits(logits, before, 2 * W)
        best, index, token_log_prob = (leaf.cpu().numpy() for leaf in (candidates, places, each.double()))
        unit = np.arange(U)[:, None]
        parent, token = np.divmod(index, V)
        bad = np.isnan(best[:, 0])  # NaN is before all numbers
        errors = self._errors(bad, parent) if bad.any() else {}
        sums = self._log_prob[unit, parent] + token_log_prob
        ends = token == self.eos_id
        if self.return_tree:
            columns = [leaf.tolist() for leaf in (parent, token, token_log_prob, sums, best, ends)]
            for place, one in enumerate(self._sources):
                cast(_Tree, one.tree).add([column[place * groups : (place + 1) * groups] for column in columns])
        units.length += 1
        if ends.any():
            units.end(texts, sums, best, parent, token_log_prob, ends[:, :W], extra)
            best = np.where(ends, BARRED, best)
            order = ends.argsort(1, kind="stable")
            best, parent, token, token_log_prob, sums = (
                leaf[unit, order] for leaf in (best, parent, token, token_log_prob, sums)
            )
        score, log_prob, parent, token = (leaf[:, :W] for leaf in (best, sums, parent, token))
        rows, added, values = (w * unit + parent).ravel(), token.ravel(), token_log_prob[:, :W].ravel()
        texts = [(texts[row], one, value) for row, one, value in
                 zip(rows.tolist(), added.tolist(), values.tolist(), strict=True)]  # fmt: skip
        score = units.cut(texts, log_prob, score, None if extra is None else extra[unit, parent])
        settled = units.settled(log_prob, score)
        if settled.any():
            settled = settled.reshape(-1, groups).all(1).repeat(groups)
            score = np.where(settled[:, None], BARRED, score)
        self._score, self._log_prob, self._texts = score, log_prob, texts
        on: np.ndarray = score.reshape(len(self._sources), -1).max(1) > BARRED
        if errors:
            on[list(errors)] = False
        if not on.all():
            for place in np.flatnonzero(~on).tolist():
                one, best_of = self._sources[place], units.best[place * groups : (place + 1) * groups]
                found = errors.get(place) or Found(_read(best_of, self.n_best), one.tree.steps if one.tree else None)
                told.append((one.key, found))
            row_kept = on.repeat(groups * score.shape[1])
            rows, added = rows[row_kept], added[row_kept]
            self._narrow(on)
        if self._sources:
            self._tokens = torch.from_numpy(added).to(device)
            if len(rows) != U * w or (rows[1:] <= rows[:-1]).any():
                self._move(rows)
            if self.processors:
                # What all rows are too young for goes.
                kept = self._prefix[:, self._prefix.shape[1] + 1 - int(self._units.length.max()) :]
                self._prefix = torch.cat([kept, self._tokens[:, None]], 1)
        return told

    def _errors(self, bad: np.ndarray, parent: np.ndarray) -> dict[int, ValueError]:
        """By their places the source rows with units that are ``bad`` (U,), and what is wrong with each."""
        found: dict[int, ValueError] = {}
        for unit in np.flatnonzero(bad).tolist():
            place, group = divmod(unit, self.groups)
            row = self._sources[place].row + group * (self.beam_size // self.groups) + int(parent[unit, 0])
            found.setdefault(place, nan_at(row, int(self._units.length[unit])))
        return found

    def _forget(self) -> None:
        """Go on without those that left."""
        if self._left:
            on = np.array([one.key not in self._left for one in self._sources])
            self._left = set()
            rows = np.flatnonzero(on.repeat(len(self._tokens) // len(on)))
            self._narrow(on)
            if self._sources:
                self._tokens = self._tokens.index_select(0, torch.from_numpy(rows).to(self._tokens.device))
                self._move(rows)

    def _narrow(self, on: np.ndarray) -> None:
        """Keep the source rows (B,) that are on, and what is known of them beside their rows."""
        self._bent_by = None
        self._sources = list(itertools.compress(self._sources, on))
        kept = on.repeat(self.groups)
        self._texts = list(itertools.compress(self._texts, kept.repeat(self._score.shape[1])))
        self._score, self._log_prob = self._score[kept], self._log_prob[kept]
        self._units.narrow(kept)
        if isinstance(self._step, BoundStep) and self._sources:
            self._step = self._step.take(torch.from_numpy(np.flatnonzero(on)).to(self._tokens.device))

    def _move(self, rows: np.ndarray) -> None:
        """Let each row go on from one of these."""
        moved = torch.from_numpy(rows).to(self._tokens.device)
        self._carry = reorder(self._carry, moved)
        if self.processors:
            self._prefix = self._prefix.index_select(0, moved)


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
    processors: Sequence[Processor] | Callable[[Sequence[int]], Sequence[Processor]] = (),
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
        processors: change the log-probabilities before candidates are compared, in this order, and know no row by its
            number; or for those that do, a function: places of source rows -> processors of their K rows each.
        bonus: of a hypothesis that ends, added to its score: the carry after its last step -> (N,) numbers of at most
            0, such as a penalty for what was never looked at.
        return_tree: also give every candidate of every step.

    The step is also called with fewer rows: first with one of each group, if there are no processors; and with those of
    the source rows that are still searched, to which a :class:`BoundStep` is narrowed.

    Raises:
        ValueError: if a parameter does not fit, or the model gives NaN.
    """
    search = BeamSearch(
        eos_id=eos_id,
        beam_size=beam_size,
        n_best=n_best,
        length_penalty=length_penalty,
        groups=groups,
        diversity=diversity,
        processors=(processors if callable(processors) else lambda _: processors) if processors else None,
        bonus=bonus,
        return_tree=return_tree,
    )
    if len(tokens) % beam_size:
        raise ValueError(f"{len(tokens)} rows are not a multiple of the {beam_size} beams of a source row")
    search.join(range(len(tokens) // beam_size), step, carry, tokens, max_steps)
    rows: dict[int, Found] = {}
    while len(search):
        for place, found in search.advance():
            if isinstance(found, ValueError):
                raise found
            rows[place] = found
    ordered = [rows[place] for place in range(len(rows))]
    return Hypotheses(
        [one.hypotheses for one in ordered], [cast(Any, one.tree) for one in ordered] if return_tree else None
    )


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


@dataclass(frozen=True, slots=True)
class _Source:
    """A source row inside: its key, the number of its first row among all that ever joined, and its tree."""

    key: Any
    row: int
    tree: _Tree | None


class _Units:
    """The groups that are searched: how far each is, and its n-best hypotheses so far, the best first.

    Args:
        limits: (U,) most tokens of each, above 0.
        n_best: how many are kept.
        length_penalty: what they are ranked by.
    """

    def __init__(self, limits: np.ndarray, n_best: int, length_penalty: float) -> None:
        self.best: list[list[Hypothesis]] = [[] for _ in limits]
        self.limits, self.length = limits, np.zeros(len(limits))
        self.worst = np.full(len(limits), BARRED)
        """Scores (U,) that one more must surpass."""
        self.n_best, self.length_penalty = n_best, length_penalty
        self.final = limits**length_penalty
        """What log-probabilities (U,) of the greatest length are divided by."""

    def end(self, texts: Sequence[_Text], log_prob: np.ndarray, search: np.ndarray, parent: np.ndarray,
            eos: np.ndarray, which: np.ndarray, extra: np.ndarray | None) -> None:  # fmt: skip
        """Enter the candidates (U, .) that eos ends, ``which`` of the first ones."""
        w = len(texts) // len(which)
        for unit, column in zip(*which.nonzero(), strict=True):
            beam = parent[unit, column]
            more = 0.0 if extra is None else float(extra[unit, beam])
            self._add(unit, texts[w * unit + beam], log_prob[unit, column], search[unit, column], more,
                      float(eos[unit, column]))  # fmt: skip

    def cut(self, texts: Sequence[_Text], log_prob: np.ndarray, search: np.ndarray,
            extra: np.ndarray | None) -> np.ndarray:  # fmt: skip
        """Enter the beams (U, w) of the units that are at their limits; the search scores, barred there."""
        at_limit = self.limits == self.length
        if not at_limit.any():
            return search
        w = search.shape[1]
        for unit, beam in itertools.product(at_limit.nonzero()[0], range(w)):
            more = 0.0 if extra is None else float(extra[unit, beam])
            self._add(unit, texts[w * unit + beam], log_prob[unit, beam], search[unit, beam], more, None)
        return np.where(at_limit[:, None], BARRED, search)

    def _add(self, unit: int, text: _Text, log_prob: float, search: float, more: float,
             eos: float | None) -> None:  # fmt: skip
        score = float(log_prob) / int(self.length[unit]) ** self.length_penalty + more
        if search == BARRED or score <= self.worst[unit]:
            return
        tokens, log_probs = [], [] if eos is None else [eos]
        while text:
            text, token, value = text
            tokens.append(token)
            log_probs.append(value)
        found = Hypothesis(tokens[::-1], log_probs[::-1], float(log_prob), float(search), score, eos is not None)
        best = self.best[unit]
        bisect.insort(best, found, key=lambda one: -one.score)
        del best[self.n_best :]
        if len(best) == self.n_best:
            self.worst[unit] = best[-1].score

    def settled(self, log_prob: np.ndarray, search: np.ndarray) -> np.ndarray:
        """(U,) whether no live hypothesis (U, w) can still come among the best.

        Log-probabilities only fall, and a sum below 0 is divided by most at the greatest length if the penalty is
        positive, at the least if it is negative. What a bonus adds is at most 0.
        """
        final = self.final if self.length_penalty >= 0 else (self.length + 1) ** self.length_penalty
        reach: np.ndarray = np.where(search > BARRED, log_prob, BARRED).max(1) / final
        return self.worst >= reach

    def join(self, other: _Units) -> None:
        """Go on with those of another behind these."""
        self.best += other.best
        self.limits, self.length, self.worst, self.final = map(
            np.concatenate, zip(self._leaves, other._leaves, strict=True)
        )

    def narrow(self, kept: np.ndarray) -> None:
        """Go on with some of the units alone, those that ``kept`` (U,) names."""
        self.best = list(itertools.compress(self.best, kept))
        self.limits, self.length, self.worst, self.final = (leaf[kept] for leaf in self._leaves)

    @property
    def _leaves(self) -> tuple[np.ndarray, ...]:
        return self.limits, self.length, self.worst, self.final


def _read(best: Sequence[Sequence[Hypothesis]], n_best: int) -> list[Hypothesis]:
    """The hypotheses of a source row from those of its groups."""
    # Two groups may find the same text.
    distinct = {(tuple(one.tokens), one.finished): one for one in reversed([one for group in best for one in group])}
    return sorted(distinct.values(), key=lambda one: -one.score)[:n_best]


class _Tree:
    """Every candidate of every step of a source row with so many groups of W beams."""

    def __init__(self, groups: int, W: int) -> None:
        self.steps: list[list[Candidate]] = []
        self.W = W
        self._nodes: list[list[int]] = [[-1] * W for _ in range(groups)]

    def add(self, columns: Sequence[Sequence[Sequence[Any]]]) -> None:
        """One step: parent, token, log-probability of it, of all, search score and end of the candidates (G, 2 W)."""
        nodes: list[Candidate] = []
        for group, before in enumerate(self._nodes):
            live: list[int] = []
            for place, candidate in enumerate(zip(*(column[group] for column in columns), strict=True)):
                parent, token, log_prob, total, search_score, ends = candidate
                if search_score == BARRED:
                    continue
                kept = (place if ends else len(live)) < self.W
                if kept and not ends:
                    live.append(len(nodes))
                nodes.append(Candidate(before[parent], token, log_prob, total, search_score, kept, ends, group))
            self._nodes[group] = live
        if nodes:
            self.steps.append(nodes)

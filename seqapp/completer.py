"""Texts that go on from prompts, side by side: they are read, sampled or searched in short steps.

N rows that grow together, V vocabulary, C condition.
"""

from __future__ import annotations

import itertools
import secrets
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqapp.beam_search import BeamSearch, Found, Hypothesis
from seqapp.completion import BeamNode, GenerationInput, GenerationOutput, Piece, ScoredToken, TokenChance
from seqapp.completion_rows import Asked, Beside, Choosing, Request, Row, processors_of
from seqapp.data.tokenizers import BOS, EOS, Tokenizer, clean
from seqapp.decoding import Carry, Growing, Processor, StepFn, join_carries, reorder
from seqapp.models.language_model import LanguageModel

ROWS_AT_ONCE = 256
"""Most completions that grow together."""
TURN = 64
"""Tokens after which a completion lets those that wait have its place."""
TURNS = 4
"""Completions that share a place, beyond which a server lets no more in."""
READ_AT_ONCE = 512
"""Tokens of prompts that are read in one step, so that those who grow meanwhile need not wait."""
READ_AT_LEAST = 64
"""Tokens of a prompt that are worth a call of the network; in one call no more are scored."""
READ_AT_MOST = 512
"""Tokens of one prompt that are read in one call."""
READ_WHEN_ALONE = 2**14
"""As :data:`READ_AT_ONCE` where nobody waits for a step."""
ENCODED_FOR_ONE = 16
"""Characters of prompts that become tokens in about the time in which a token is read."""


class Completer:
    """Answers requests with one model.

    Args:
        tokenizer: of the model.
        model: says how likely each next token is.
    """

    def __init__(self, tokenizer: Tokenizer, model: LanguageModel) -> None:
        self.tokenizer, self.model = tokenizer, model

    def request(self, given: GenerationInput, condition: Tensor | None) -> Request:
        """``given`` checked against the model.

        Args:
            given: the input.
            condition: (C,), for a model that has one.

        Raises:
            ValueError: naming the field that does not fit this model.
        """
        bias = torch.zeros(self.tokenizer.size) if given.logit_bias else None
        for text, value in given.logit_bias.items():
            token = self.tokenizer.token_id(text)
            if token is None:
                raise ValueError(
                    f"logit_bias: no token of this model is {text!r:.60}; logprobs show what they look like"
                )
            assert bias is not None
            bias[token] = value
        if given.beam_size is not None and given.beam_size > self.tokenizer.size:
            raise ValueError(f"beam_size: {given.beam_size} is more than the {self.tokenizer.size} tokens this model "
                             f"knows; at most {self.tokenizer.size} fits")  # fmt: skip
        seed = given.seed
        if seed is None and given.samples:
            seed = secrets.randbits(32)
        return Request(self.tokenizer, given, condition, bias, seed)

    def answer(self, requests: Sequence[Request]) -> list[GenerationOutput]:
        """What each request is answered, in order and as if it were alone.

        Raises:
            ValueError: if the model gives NaN.
        """
        batch = Completions(self, read_at_once=READ_WHEN_ALONE)
        for index, request in enumerate(requests):
            batch.join(index, request)
        outputs = dict(_run(batch))
        return [outputs[index] for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Piece]:
        """The completions as they grow; see :meth:`seqapp.tasks.generation.Generation.stream`."""
        batch = Completions(self, read_at_once=READ_WHEN_ALONE)
        batch.join(0, request, stream=True)
        return (piece for _, piece in _run(batch))


class Told(NamedTuple):
    """What came of a step for one request.

    Args:
        key: of the request.
        value: an output, a piece, or the error that it ended with.
        last: whether no more will come.
    """

    key: Hashable
    value: GenerationOutput | Piece | Exception
    last: bool


class Completions:
    """Requests that one model answers side by side: they join and leave between steps.

    A prompt is read in short pieces, several prompts side by side, then its completions grow beside all others, one
    token a step, whatever their options. Where more grow than fit, those that have had their :data:`TURN` stand in line
    again: all that a completion keeps is a row of a carry. LAW: each request is answered as if it were alone.

    Args:
        completer: the tokenizer and the model, whose weights do not change meanwhile.
        read_at_once: tokens of prompts read in one step, about; by default :data:`READ_AT_ONCE`.
    """

    def __init__(self, completer: Completer, *, read_at_once: int | None = None) -> None:
        self._tokenizer, self._model = completer.tokenizer, completer.model
        self._read_at_once = read_at_once or READ_AT_ONCE
        self._asked: dict[Hashable, Asked] = {}
        self._new: deque[Asked] = deque()
        self._unread: deque[_Reading] = deque()
        self._unsearched: deque[_Searched] = deque()
        self._searching: dict[Hashable, BeamSearch] = {}
        self._ready: deque[Beside] = deque()
        self._inside: Beside | None = None
        self._told: list[Told] = []
        self._swept = True
        self._steps: dict[int, StepFn] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def join(self, key: Hashable, request: Request, *, stream: bool = False) -> None:
        """Take in a request.

        Args:
            key: by which its answer is told; none inside has it.
            request: made by the completer.
            stream: tell its pieces as they grow; those of a search come whole, at its end.
        """
        self._asked[key] = asked = Asked(key, request, stream)
        self._new.append(asked)

    def leave(self, key: Hashable) -> None:
        """Forget a request; nothing more is computed for it. Nothing happens if it is not inside."""
        asked = self._asked.pop(key, None)
        if asked is not None:
            asked.over, self._swept = True, False
            if not self._asked:
                self._sweep()

    def pause(self, key: Hashable, *, paused: bool) -> None:
        """Let the completions of a request stop growing, or go on; they stay inside meanwhile."""
        asked = self._asked.get(key)
        if asked is not None:
            asked.paused, self._swept = paused, False

    @property
    def full(self) -> bool:
        """Whether so many completions share the places in turns that one more would wait long; but for paused ones."""
        places = sum(asked.places for asked in self._asked.values() if not asked.paused)
        return places >= TURNS * ROWS_AT_ONCE

    @torch.inference_mode()
    def step(self) -> list[Told]:
        """Read some of the prompts, and choose a token for each row that grows."""
        self._sweep()
        self._open()
        if self._unread:
            self._read(self._take_unread())
        self._seat()
        if self._inside is not None:
            self._inside = self._grow(self._inside)
        self._search()
        told, self._told = self._told, []
        return told

    def _sweep(self) -> None:
        """Drop all that belongs to requests that are over."""
        if self._swept:
            return
        self._new = deque(one for one in self._new if not one.over)
        self._unread = deque(one for one in self._unread if not one.asked.over)
        self._unsearched = deque(one for one in self._unsearched if not one.asked.over)
        for search in self._searching.values():
            for one in search.keys:
                if one.asked.over:
                    search.leave(one)
        self._searching = {name: search for name, search in self._searching.items() if len(search)}
        self._ready = deque(left for one in self._ready if (left := one.without_over()) is not None)
        if self._inside is not None:
            self._inside = self._inside.without_over()
        if self._inside is not None:
            going, pausing = self._inside.parted(lambda row: not row.asked.paused)
            self._inside = going
            if pausing is not None:
                self._ready.append(pausing)
        self._swept = True

    def _tell(self, asked: Asked, value: GenerationOutput | Piece | Exception, last: bool) -> None:
        if asked.over:
            return
        self._told.append(Told(asked.key, value, last))
        if last:
            asked.over, self._swept = True, False
            del self._asked[asked.key]

    @contextmanager
    def _blaming(self, asked: Asked) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell(asked, error, last=True)

    # Reading

    def _open(self) -> None:
        """Let those who came make tokens of their prompts."""
        characters, most = 0, ENCODED_FOR_ONE * self._read_at_once
        while self._new and characters < most:
            asked = self._new.popleft()
            try:
                if asked.encoding is None:
                    asked.encoding = asked.request.encode(most)
                for encoded in asked.encoding:
                    characters += encoded
                    if characters >= most:
                        self._new.append(asked)  # at the end: the others have their turns first
                        break
                else:
                    self._line_up(asked)
            except Exception as error:
                self._tell(asked, error, last=True)

    def _line_up(self, asked: Asked) -> None:
        """Let a prompt of tokens stand in line to be read."""
        request, given, ids = asked.request, asked.request.given, asked.request.encoded.ids
        seed = request.seed if given.samples else None
        asked.first = {"notes": request.notes, "prompt_tokens": len(ids), "seed": seed}
        scored = given.echo and given.logprobs is not None
        feed = [BOS, *ids] if scored or given.max_tokens else [BOS]
        self._unread.append(_Reading(asked, feed, len(feed) - 1, ids if scored else []))

    def _take_unread(self) -> list[_Reading]:
        """The prompts that are read on in this step, those that have waited longest."""
        taken = [self._unread.popleft()]
        longest = min(taken[0].left, READ_AT_LEAST)
        while self._unread:
            longest = max(longest, min(self._unread[0].left, READ_AT_LEAST))
            if longest * (len(taken) + 1) > self._read_at_once or len(taken) == ROWS_AT_ONCE:
                break
            taken.append(self._unread.popleft())
        return taken

    def _read(self, readings: Sequence[_Reading]) -> None:
        """Read on in these, side by side; those that are not read to their end stand in line again."""
        share = min(READ_AT_MOST, max(READ_AT_LEAST, self._read_at_once // len(readings)))
        readings = sorted(readings, key=lambda one: one.carry is None)
        try:
            parts = [one.part(share) for one in readings]
            begun = [one.carry for one in readings if one.carry is not None]
            fresh = readings[len(begun) :]
            carry = join_carries(begun + ([self._fresh(fresh)] if fresh else []))
            y = None
            if any(parts):
                y, carry = self._model.read(parts, carry)
            one_by_one = [reorder(carry, torch.tensor([row], device=self._device)) for row in range(len(readings))]
            for row, one in enumerate(readings):
                if one.targets and y is not None:
                    self._score(one, y[row, : len(parts[row])])
        except Exception as error:
            if len(readings) == 1:
                self._tell(readings[0].asked, error, last=True)
                return
            for one in readings:  # one of them is to blame, the others go on
                self._read([one])
            return
        for one, part, own in zip(readings, parts, one_by_one, strict=True):
            if one.targets and one.search is None:
                self._name(one, slice(one.at, one.at + len(part)))
            one.carry = own
            one.at += len(part)
            if one.left:
                self._unread.append(one)
            else:
                with self._blaming(one.asked):
                    self._begin(one) if one.search is None else self._scored(one.search)

    @property
    def _device(self) -> torch.device:
        return self._model.embedding.weight.device

    def _fresh(self, readings: Sequence[_Reading]) -> Carry:
        conditions = [one.asked.request.condition for one in readings if one.asked.request.condition is not None]
        condition = torch.stack(conditions).to(self._model.embedding.weight) if conditions else None
        return self._model.fresh(len(readings), condition)

    def _score(self, reading: _Reading, y: Tensor) -> None:
        """Log-probabilities of what comes after each place: y (T, I), what the head projects."""
        if not len(y):
            return
        targets = reading.targets[reading.at : reading.at + len(y)]
        chances = -self._model.head.nll(y, torch.tensor(targets, device=y.device))
        if bool(chances.isnan().any()):
            raise ValueError("the model gave NaN for a token of the prompt; finite log-probabilities fit")
        reading.chances[reading.at :] = chances.tolist()
        if count := reading.asked.request.given.logprobs:
            found = self._model.head.logits(y).log_softmax(-1).topk(min(count, self._tokenizer.size))
            reading.tops[reading.at :] = _pairs(found.values, found.indices)

    def _begin(self, reading: _Reading) -> None:
        """A prompt is read: its completions begin."""
        asked, given = reading.asked, reading.asked.request.given
        token = torch.tensor([reading.feed[-1]], device=self._device)
        if given.beam_size is not None:
            self._unsearched.append(_Searched(asked, reading.carry, token))
            return
        asked.rows = [Row(asked, number, self._tokenizer) for number in range(given.n)]
        asked.growing = given.n
        if asked.stream and given.echo:
            for row in asked.rows:
                self._tell_piece(asked, Piece(index=row.number, text=clean(given.prompt), logprobs=asked.scored))
        if not given.max_tokens:
            for row in asked.rows:
                row.finish_reason = "length"
                self._tell_row(row, "", [])
            return
        copies = torch.zeros(given.n, dtype=torch.int64, device=self._device)
        self._ready.append(Beside(asked.rows, Growing.begin(reorder(reading.carry, copies), token[copies])))

    # Growing

    def _seat(self) -> None:
        """Let rows that are ready grow with the others, where there is room or the turn of one is over."""
        waiting = sum(not row.asked.paused for side in self._ready for row in side.rows)
        if not waiting:
            return
        inside = self._inside
        wanted = waiting - ROWS_AT_ONCE + (len(inside.rows) if inside else 0)
        if inside is not None and wanted > 0:
            over = set(itertools.islice((row for row in inside.rows if row.turn >= TURN), wanted))
            inside, resting = inside.parted(lambda row: row not in over)
            if resting is not None:
                for row in resting.rows:
                    row.turn = 0
                self._ready.append(resting)
        parts = [] if inside is None else [inside]
        room = ROWS_AT_ONCE - (len(inside.rows) if inside else 0)
        left: deque[Beside] = deque()
        for side in self._ready:
            seated = set(itertools.islice((row for row in side.rows if not row.asked.paused), room))
            room -= len(seated)
            joining, staying = side.parted(seated.__contains__)
            if joining is not None:
                parts.append(joining)
            if staying is not None:
                left.append(staying)
        self._ready = left
        self._inside = Beside.join(parts)

    def _grow(self, side: Beside) -> Beside | None:
        """One token more for each row; those that go on."""
        rows = side.rows
        try:
            if side.choosing is None:
                side.choosing = Choosing.of(rows, self._tokenizer.size, self._device)
            how = side.choosing
            choice = side.growing.step(
                self._step(len(rows)), eos_id=EOS, sampler=how.sampler, processors=how.processors,
                top=how.top, top_of=how.top_of,
            )  # fmt: skip
        except Exception as error:
            blamed = list({id(row.asked): row.asked for row in rows}.values())
            if len(blamed) == 1:
                self._tell(blamed[0], error, last=True)
                return None
            # One of them is to blame, the others go on.
            parts = [side.take([place for place, row in enumerate(rows) if row.asked is asked]) for asked in blamed]
            return Beside.join([left for part in parts if (left := self._grow(part)) is not None])
        for place in choice.nan:
            row = rows[place]
            told = f"the model gave NaN for token {row.tokens} of completion {row.number} (both count from 0); finite"
            self._tell(row.asked, ValueError(f"{told} logits fit"), last=True)
        tops = iter(_pairs(*choice.top)) if choice.top else None
        for row, token, chance in zip(rows, choice.tokens.tolist(), choice.log_probs.tolist(), strict=True):
            given = row.asked.request.given
            top = next(tops)[: given.logprobs] if tops and given.logprobs else ()
            if row.asked.over:
                continue
            row.turn += 1
            try:
                self._tell_row(row, *row.add(token, chance, top))
            except Exception as error:
                self._tell(row.asked, error, last=True)
        return side.without_over()

    def _step(self, rows: int) -> StepFn:
        """What is made for the next power of two: made anew for each number it would be dearer than it is worth."""
        size = 1 << (rows - 1).bit_length()
        if size not in self._steps:
            self._steps[size] = self._model.steps(size)
        return self._steps[size]

    # Searching

    def _search(self) -> None:
        """Let those that wait be searched with their like, and take one step of the search whose turn it is."""
        room = ROWS_AT_ONCE - sum(search.beam_size * len(search) for search in self._searching.values())
        coming: dict[Hashable, list[_Searched]] = {}
        while self._unsearched and (not (self._searching or coming) or self._unsearched[0].beams <= room):
            one = self._unsearched.popleft()
            room -= one.beams
            coming.setdefault(one.asked.request.alike, []).append(one)
        for name, alike in coming.items():
            self._begin_search(name, alike)
        if not self._searching:
            return
        name = next(iter(self._searching))
        search = self._searching.pop(name)
        try:
            done = search.advance()
        except Exception as error:
            inside = search.keys
            if len(inside) == 1:
                self._tell(inside[0].asked, error, last=True)
            else:  # one of them is to blame, the others begin anew
                for one in inside:
                    self._begin_search(one, [one])
            return
        if len(search):
            self._searching[name] = search  # at the end: the others have their turns first
        for one, found in done:
            if isinstance(found, ValueError):
                self._tell(one.asked, found, last=True)
            else:
                with self._blaming(one.asked):
                    self._read_again(one, found)

    def _begin_search(self, name: Hashable, alike: Sequence[_Searched]) -> None:
        """Let these join the search of this name."""
        given = alike[0].asked.request.given
        beams = alike[0].beams
        search = self._searching.get(name)
        if search is None:
            search = self._searching[name] = BeamSearch(
                eos_id=EOS,
                beam_size=beams,
                n_best=given.n,
                length_penalty=given.length_penalty,
                groups=given.beam_groups,
                diversity=given.diversity,
                processors=self._search_processors,
                return_tree=given.return_beams,
            )
        step = self._step(beams * (len(search) + len(alike)))
        copies = torch.arange(len(alike), device=self._device).repeat_interleave(beams)
        carry, tokens = join_carries([one.carry for one in alike]), torch.cat([one.token for one in alike])
        limits = [one.asked.request.given.max_tokens for one in alike]
        search.join(alike, step, reorder(carry, copies), tokens[copies], limits)

    def _search_processors(self, inside: Sequence[_Searched]) -> list[Processor]:
        requests = [one.asked.request for one in inside for _ in range(one.beams)]
        return processors_of(requests, self._tokenizer.size, self._device)

    def _read_again(self, one: _Searched, found: Found) -> None:
        """Read what was found once more, where rivals are asked for: a search keeps none of the tokens it took."""
        one.found = found
        if not one.asked.request.given.logprobs:
            self._answer(one)
            return
        for hypothesis in found.hypotheses:
            tokens = _tokens(hypothesis)
            feed = [int(one.token), *tokens[:-1]]
            one.readings.append(_Reading(one.asked, feed, len(tokens), tokens, one, one.carry))
        self._unread += [reading for reading in one.readings if reading.left]
        self._scored(one)

    def _scored(self, one: _Searched) -> None:
        if not any(reading.left for reading in one.readings):
            self._answer(one)

    def _answer(self, one: _Searched) -> None:
        """What was found is the answer."""
        asked = one.asked
        completions = []
        for number, hypothesis in enumerate(one.found.hypotheses):
            row, tokens = Row(asked, number, self._tokenizer), _tokens(hypothesis)
            tops = one.readings[number].tops if one.readings else [()] * len(tokens)
            for token, chance, top in zip(tokens, hypothesis.log_probs, tops, strict=True):
                row.keep(*row.add(token, chance, top))
                if row.ended:
                    break
            completions.append(row.completion())
        beams = None
        if one.found.tree is not None:
            beams = [
                [
                    BeamNode(
                        token=self._tokenizer.token_text(node.token), parent=node.parent, log_prob=node.log_prob,
                        score=node.total, group=node.group, kept=node.kept, finished=node.finished,
                    )
                    for node in nodes
                ]
                for nodes in one.found.tree
            ]  # fmt: skip
        output = asked.output(completions, beams)
        if not asked.stream:
            self._tell(asked, output, last=True)
            return
        for number, found in enumerate(output.completions):
            piece = Piece(index=number, text=found.text, logprobs=found.logprobs or [],
                          finish_reason=found.finish_reason, score=found.score, tokens=found.tokens)  # fmt: skip
            self._tell_piece(asked, piece, last=number + 1 == len(output.completions))

    # Telling

    def _tell_row(self, row: Row, text: str, scored: list[ScoredToken]) -> None:
        """What a row has added; with the last of all rows, the answer."""
        asked = row.asked
        asked.growing -= row.ended
        if not asked.stream:
            row.keep(text, scored)
            if not asked.growing:
                self._tell(asked, asked.output([one.completion() for one in asked.rows]), last=True)
        elif text or scored or row.ended:
            piece = Piece(index=row.number, text=text, logprobs=asked.moved(scored), finish_reason=row.finish_reason,
                          score=row.score if row.ended else None, tokens=row.tokens - row.told)  # fmt: skip
            row.told = row.tokens
            self._tell_piece(asked, piece, last=not asked.growing)

    def _tell_piece(self, asked: Asked, piece: Piece, last: bool = False) -> None:
        if asked.first:
            piece, asked.first = piece.model_copy(update=asked.first), {}
        self._tell(asked, piece, last)

    def _name(self, reading: _Reading, part: slice) -> None:
        """What a person is told of these tokens of a prompt."""
        name, tops = self._tokenizer.token_text, reading.tops[part]
        offsets = reading.asked.request.encoded.offsets[part]
        reading.asked.scored += [
            ScoredToken(
                token=name(token),
                log_prob=chance,
                offset=start,
                top=[TokenChance(token=name(rival), log_prob=value) for rival, value in top],
            )
            for token, chance, (start, _), top in zip(
                reading.targets[part], reading.chances[part], offsets, tops or [[]] * len(offsets), strict=True
            )
        ]


@dataclass(eq=False)
class _Reading:
    """A text that is read in pieces.

    Args:
        feed: ids, BOS among them.
        size: how many of them are read.
        targets: what comes after each, if they are scored.
        search: which found the text; None where it is a prompt.
        carry: after what has been read; None before BOS.
        at: how many have been read.
    """

    asked: Asked
    feed: Sequence[int]
    size: int
    targets: Sequence[int]
    search: _Searched | None = None
    carry: Carry = None
    at: int = 0
    chances: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.size - self.at

    def part(self, most: int) -> Sequence[int]:
        """The ids that are read next."""
        most = min(most, READ_AT_LEAST) if self.targets else most
        return self.feed[self.at : min(self.at + most, self.size)]


@dataclass(eq=False)
class _Searched:
    """A search: what was read before it, and what it found.

    Args:
        carry: of the prompt but its last token, (1, ...).
        token: (1,) the last of the prompt.
        found: at its end.
        readings: of what was found.
    """

    asked: Asked
    carry: Carry
    token: Tensor
    found: Found = Found([])  # noqa: RUF009  (never changed)
    readings: list[_Reading] = field(default_factory=list)

    @property
    def beams(self) -> int:
        return self.asked.request.given.beam_size or 1


def _run(batch: Completions) -> Iterator[tuple[Any, Any]]:
    """Steps until all are answered; an error is raised."""
    while len(batch):
        for told in batch.step():
            if isinstance(told.value, Exception):
                raise told.value
            yield told.key, told.value


def _pairs(values: Tensor, ids: Tensor) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each row: values and ids (M, k)."""
    return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def _tokens(found: Hypothesis) -> list[int]:
    """With the eos that ended it."""
    return [*found.tokens, *[EOS] * found.finished]

"""Problems made by rule that ask how long and how exactly a network remembers; nothing to download, no end of data.

N sequences, T time, I channels, O values.

Each kind is there twice: a ``..._rows`` function draws fresh sequences as tensors, as many as wanted; a data source
of the same name makes the three splits of a data set from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from seqapp.data.splits import SOURCES, Splits
from seqapp.data.steps import Step, Steps, Symbol
from seqapp.errors import ConfigError
from seqapp.registry import Count, Size

_DRAWN = 256
_PATIENCE = 20


class Rows(NamedTuple):
    """N sequences as tensors.

    ``inputs`` is (N, T) int64 symbols or (N, T, I) float32, ``targets`` (N, T) int64 or (N, T, O) float32, 0 where
    ``asked`` (N, T) is False; ``lengths`` (N,). ``vocabulary_size`` and ``classes`` count symbols in and out, or
    channels and values: what a model is built with.
    """

    inputs: Tensor
    targets: Tensor
    asked: Tensor
    lengths: Tensor
    vocabulary_size: int
    classes: int


def copy_rows(chance: torch.Generator, rows: int, length: int, *, symbols: int = 8, recited: int = 10) -> Rows:
    """Recite what was read long ago (Hochreiter & Schmidhuber 1997; in this form Arjovsky et al. 2016, section 5.1).

    S = ``recited`` symbols out of K = ``symbols``; T - 1 blanks, where T = ``length`` is the delay; a go marker; S
    blanks, at each of which the next of the S symbols is asked: T + 2 S steps. Blank is symbol K, go is K + 1. Who
    remembers nothing pays ln K nats an answer.
    """
    size = length + 2 * recited
    data = torch.randint(symbols, (rows, recited), generator=chance)
    inputs = torch.full((rows, size), symbols)
    inputs[:, :recited] = data
    inputs[:, size - recited - 1] = symbols + 1
    targets = torch.zeros(rows, size, dtype=torch.int64)
    targets[:, size - recited :] = data
    asked = torch.zeros(rows, size, dtype=torch.bool)
    asked[:, size - recited :] = True
    return Rows(inputs, targets, asked, torch.full((rows,), size), symbols + 2, symbols)


def adding_rows(chance: torch.Generator, rows: int, length: int) -> Rows:
    """Add the two marked numbers (Hochreiter & Schmidhuber 1997; in this form Arjovsky et al. 2016, section 5.2).

    At each of T = ``length`` >= 2 steps a value, uniform in [0, 1), and a marker that is 1 at one place of each half
    and else 0; at the end the sum of the two marked values is asked. Always answering 1 has mean squared error 1/6.
    """
    values = torch.rand(rows, length, generator=chance)
    half = length // 2
    first = torch.randint(half, (rows, 1), generator=chance)
    second = torch.randint(half, length, (rows, 1), generator=chance)
    markers = torch.zeros(rows, length).scatter_(1, torch.cat([first, second], 1), 1.0)
    targets = torch.zeros(rows, length, 1)
    targets[:, -1, 0] = (values * markers).sum(1)
    return Rows(torch.stack([values, markers], -1), targets, _only_end(rows, length), torch.full((rows,), length), 2, 1)


def first_token_rows(chance: torch.Generator, rows: int, length: int, *, symbols: int = 8) -> Rows:
    """Name the first symbol after ``length`` others, drawn from the same ``symbols``: length + 1 steps.

    The simplest latch (after Bengio et al. 1994, section II); the distractors look like what must be kept, so only
    its place tells it. Who remembers nothing pays ln K nats.
    """
    inputs = torch.randint(symbols, (rows, length + 1), generator=chance)
    asked = _only_end(rows, length + 1)
    return Rows(inputs, inputs[:, :1] * asked, asked, torch.full((rows,), length + 1), symbols, symbols)


def parity_rows(
    chance: torch.Generator, rows: int, length: int, *, asked_at: Literal["every", "end"] = "every"
) -> Rows:
    """Whether an odd number of the ``length`` bits so far were 1: one bit of memory that every 1 must flip.

    No bit of the answer can be told from fewer than all the inputs, so a network that has only part of the rule has
    ln 2 nats an answer (Minsky & Papert 1969 for one layer; as a test of recurrence, Hochreiter & Schmidhuber 1997).
    """
    bits = torch.randint(2, (rows, length), generator=chance)
    asked = torch.ones(rows, length, dtype=torch.bool) if asked_at == "every" else _only_end(rows, length)
    return Rows(bits, bits.cumsum(1) % 2 * asked, asked, torch.full((rows,), length), 2, 2)


def anbn_rows(chance: torch.Generator, rows: int, length: int, *, shortest: int = 1) -> Rows:
    """Strings a^n b^n, n uniform from ``shortest`` to ``length``, predicted symbol by symbol (Gers & Schmidhuber 2001).

    Reads "end" (symbol 2), n times a (0), n times b (1): 2 n + 1 steps. The next symbol is asked where the rule
    decides it: after the first "end" an a, after each b another b or, after the last, "end"; after an a both letters
    may follow and nothing is asked.
    """
    return _anbn(torch.randint(shortest, length + 1, (rows,), generator=chance))


def _anbn(n: Tensor) -> Rows:
    n = n[:, None]
    time = torch.arange(2 * int(n.max()) + 1)
    inside = time <= 2 * n
    inputs = torch.where(time == 0, 2, (time > n).long()) * inside
    asked = ((time == 0) | (time > n)) & inside
    targets = torch.where(time == 0, 0, torch.where(time == 2 * n, 2, 1)) * asked
    return Rows(inputs, targets, asked, 2 * n[:, 0] + 1, 3, 3)


def narma_rows(chance: torch.Generator, rows: int, length: int) -> Rows:
    """Follow a system that remembers ten steps of its input and its output: NARMA-10 (Atiya & Parlos 2000, section V).

    y_{t+1} = 0.3 y_t + 0.05 y_t (y_t + ... + y_{t-9}) + 1.5 u_{t-9} u_t + 0.1, u uniform in [0, 0.5), at rest before
    the first step (u = y = 0). Step t reads u_t and answers y_{t+1}. Inputs that make y grow past 1, where the system
    runs away, are drawn again; the longer the rows, the more of them.

    Raises:
        ConfigError: if draw after draw runs away, saying which length fits.
    """
    u, y = _narma(chance, rows, length)
    wild = _runs_away(y).any(1).nonzero()[:, 0]
    barren = 0
    while len(wild):
        # After a round in vain many more are drawn, so that patience ends for long rows and not by bad luck.
        other_u, other_y = _narma(chance, max(len(wild), _DRAWN) if barren else len(wild), length)
        away = _runs_away(other_y)
        tame = (~away.any(1)).nonzero()[:, 0][: len(wild)]
        filled, wild = wild[: len(tame)], wild[len(tame) :]
        u[filled], y[filled] = other_u[tame], other_y[tame]
        barren = 0 if len(tame) else barren + 1
        if barren == _PATIENCE:
            half = int(away.long().argmax(1).median())
            raise ConfigError(f"narma: in {length} steps every draw runs away; half of them keep to {half} steps, so a "
                              f"length of {max(half, 1)} fits")  # fmt: skip
    asked = torch.ones(rows, length, dtype=torch.bool)
    return Rows(u[..., None].float(), y[..., None].float(), asked, torch.full((rows,), length), 1, 1)


def _runs_away(y: Tensor) -> Tensor:
    return ~(y <= 1)  # not >: NaN must count too


def _narma(chance: torch.Generator, rows: int, length: int) -> tuple[Tensor, Tensor]:
    u = torch.rand(rows, length, generator=chance, dtype=torch.float64) / 2
    past_u = torch.cat([u.new_zeros(rows, 9), u], 1)
    y = u.new_zeros(rows, length + 10)  # y[:, t + 9] is y_t
    for t in range(length):
        now = y[:, t + 9]
        y[:, t + 10] = 0.3 * now + 0.05 * now * y[:, t : t + 10].sum(1) + 1.5 * past_u[:, t] * u[:, t] + 0.1
    return u, y[:, 10:]


ROWS: dict[str, Callable[..., Rows]] = {
    "copy": copy_rows,
    "adding": adding_rows,
    "first_token": first_token_rows,
    "parity": parity_rows,
    "anbn": anbn_rows,
    "narma": narma_rows,
}
"""Kind -> ``(chance, rows, length, **options)`` -> :class:`Rows`."""


def _only_end(rows: int, length: int) -> Tensor:
    asked = torch.zeros(rows, length, dtype=torch.bool)
    asked[:, -1] = True
    return asked


@SOURCES.register("copy")
def copy(
    *,
    delay: Size = 50,
    symbols: Size = 8,
    recited: Size = 10,
    train: Size = 4096,
    validation: Size = 256,
    test: Count = 512,
    seed: Count = 1,
) -> Splits[Steps]:
    """Recite symbols read a while ago, when a marker says go (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016).

    No sequence of the validation or test split is in training, and each is there once.

    Args:
        delay: steps from the last symbol read to the marker that asks for them.
        symbols: K, how many different symbols there are to remember.
        recited: S, how many symbols are to be remembered.
        train: number of training sequences.
        validation: number of validation sequences.
        test: number of test sequences; 0 for no test split.
        seed: of the draws.

    Raises:
        ConfigError: if there are fewer different sequences than the splits need.
    """
    names = [*range(symbols), "blank", "go"]
    name = f"copy, {recited} of {symbols} symbols over {delay} steps, seed {seed}"
    sizes = {"test": test, "validation": validation, "train": train}

    def draw(chance: torch.Generator, rows: int) -> Rows:
        return copy_rows(chance, rows, delay, symbols=symbols, recited=recited)

    return _splits(name, draw, sizes, seed, names)


@SOURCES.register("adding")
def adding(
    *, length: Size = 50, train: Size = 8192, validation: Size = 512, test: Count = 1024, seed: Count = 1
) -> Splits[Steps]:
    """Add two marked numbers of a long row (Hochreiter & Schmidhuber 1997).

    No sequence of the validation or test split is in training, and each is there once.

    Args:
        length: T, steps in a sequence; 2 or more.
        train: number of training sequences.
        validation: number of validation sequences.
        test: number of test sequences; 0 for no test split.
        seed: of the draws.

    Raises:
        ConfigError: if `length` is 1.
    """
    if length < 2:
        raise ConfigError("adding: length 1 has no two halves; 2 or more fits")
    sizes = {"test": test, "validation": validation, "train": train}
    name = f"adding over {length} steps, seed {seed}"
    return _splits(name, lambda chance, rows: adding_rows(chance, rows, length), sizes, seed)


@SOURCES.register("first_token")
def first_token(
    *,
    delay: Size = 50,
    symbols: Size = 8,
    train: Size = 4096,
    validation: Size = 256,
    test: Count = 512,
    seed: Count = 1,
) -> Splits[Steps]:
    """Name the first symbol of a row after many others (after Bengio et al. 1994).

    No sequence of the validation or test split is in training, and each is there once.

    Args:
        delay: symbols read after the first one.
        symbols: how many different symbols there are.
        train: number of training sequences.
        validation: number of validation sequences.
        test: number of test sequences; 0 for no test split.
        seed: of the draws.

    Raises:
        ConfigError: if there are fewer different sequences than the splits need.
    """
    name = f"first of {symbols} symbols over {delay} steps, seed {seed}"
    sizes = {"test": test, "validation": validation, "train": train}
    return _splits(name, lambda chance, rows: first_token_rows(chance, rows, delay, symbols=symbols), sizes, seed)


@SOURCES.register("parity")
def parity(
    *,
    length: Size = 50,
    asked_at: Literal["every", "end"] = "every",
    train: Size = 4096,
    validation: Size = 256,
    test: Count = 512,
    seed: Count = 1,
) -> Splits[Steps]:
    """Whether the number of ones so far is odd.

    No sequence of the validation or test split is in training, and each is there once.

    Args:
        length: bits in a sequence.
        asked_at: where the parity is asked, after every bit or after the last; the latter is far harder to learn.
        train: number of training sequences.
        validation: number of validation sequences.
        test: number of test sequences; 0 for no test split.
        seed: of the draws.

    Raises:
        ConfigError: if there are fewer different sequences than the splits need.
    """
    where = "the end" if asked_at == "end" else "every step"
    name = f"parity of {length} bits, asked at {where}, seed {seed}"
    sizes = {"test": test, "validation": validation, "train": train}

    def draw(chance: torch.Generator, rows: int) -> Rows:
        return parity_rows(chance, rows, length, asked_at=asked_at)

    return _splits(name, draw, sizes, seed)


@SOURCES.register("anbn")
def anbn(
    *,
    shortest: Size = 1,
    longest: Size = 10,
    validation_longest: Size = 15,
    test_longest: Size = 20,
    train: Size = 1024,
    seed: Count = 1,
) -> Splits[Steps]:
    """Strings a^n b^n, predicted symbol by symbol: counting, and counting further than ever seen (Gers & Schmidhuber
    2001).

    There is one string for each n, so the training split repeats its few strings, while validation and test hold
    one string for each n greater than any seen before: no string is in two splits.

    Args:
        shortest: smallest n in training.
        longest: greatest n in training.
        validation_longest: greatest n in validation, which has each n from longest + 1 on.
        test_longest: greatest n in test, which has each n from validation_longest + 1 on; validation_longest for no
            test split.
        train: number of training strings, n drawn uniformly.
        seed: of the draws.

    Raises:
        ConfigError: unless shortest <= longest < validation_longest <= test_longest.
    """
    if not shortest <= longest < validation_longest <= test_longest:
        came = f"{shortest}, {longest}, {validation_longest}, {test_longest}"
        raise ConfigError(f"anbn: shortest <= longest < validation_longest <= test_longest fits, not {came}")
    names = ("a", "b", "end")
    chance = torch.Generator().manual_seed(seed)
    parts = {"train": anbn_rows(chance, train, longest, shortest=shortest)}
    for part, above, last in (
        ("validation", longest, validation_longest),
        ("test", validation_longest, test_longest),
    ):
        if last > above:
            parts[part] = _anbn(torch.arange(above + 1, last + 1))
    name = f"anbn, n from {shortest} to {longest}, then to {validation_longest}, then to {test_longest}, seed {seed}"
    steps = {part: as_steps(rows, names) for part, rows in parts.items()}
    return Splits.of(name, steps)


@SOURCES.register("narma")
def narma(
    *, length: Size = 100, train: Size = 512, validation: Size = 64, test: Count = 128, seed: Count = 1
) -> Splits[Steps]:
    """NARMA-10: follow a non-linear system with ten steps of memory (Atiya & Parlos 2000).

    No sequence of the validation or test split is in training, and each is there once.

    Args:
        length: T, steps in a sequence.
        train: number of training sequences.
        validation: number of validation sequences.
        test: number of test sequences; 0 for no test split.
        seed: of the draws.

    Raises:
        ConfigError: if the sequences are so long that the system always runs away.
    """
    sizes = {"test": test, "validation": validation, "train": train}
    name = f"NARMA-10 over {length} steps, seed {seed}"
    return _splits(name, lambda chance, rows: narma_rows(chance, rows, length), sizes, seed)


def as_steps(rows: Rows, names: Sequence[Symbol] | None = None) -> list[Steps]:
    """The sequences one by one, without padding.

    Args:
        rows: what a ``..._rows`` function drew.
        names: of the symbols, in and out; their numbers if None.
    """

    def named(step: Any) -> Step:
        if isinstance(step, list):
            return tuple(step)
        symbol: Symbol = step if names is None else names[step]
        return symbol

    steps = []
    for inputs, targets, asked, length in zip(
        rows.inputs.tolist(), rows.targets.tolist(), rows.asked.tolist(), rows.lengths.tolist(), strict=True
    ):
        answers = (named(step) if wanted else None for step, wanted in zip(targets, asked, strict=True))
        steps.append(Steps(tuple(map(named, inputs[:length])), tuple(answers)[:length]))
    return steps


def _splits(
    name: str,
    draw: Callable[[torch.Generator, int], Rows],
    sizes: dict[str, int],
    seed: int,
    names: Sequence[Symbol] | None = None,
) -> Splits[Steps]:
    """Test and validation sequences, all different, then training sequences that are none of them."""
    chance = torch.Generator().manual_seed(seed)
    held_out: set[bytes] = set()
    parts: dict[str, list[Steps]] = {}
    for part, size in sizes.items():
        kept: list[Steps] = []
        barren = 0
        while len(kept) < size:
            rows = draw(chance, max(_DRAWN, size - len(kept)))
            fresh = []
            for index, row in enumerate(rows.inputs.numpy()):
                key = row.tobytes()
                if key not in held_out:
                    fresh.append(index)
                    if part != "train":
                        held_out.add(key)
                if len(kept) + len(fresh) == size:
                    break
            kept += as_steps(_take(rows, fresh), names)
            barren = 0 if fresh else barren + 1
            if barren == _PATIENCE:
                what = f"found {len(kept)} of {size} {part} sequences that stand in no other split"
                raise ConfigError(f"{name}: {what}; longer sequences, or smaller validation and test splits fit")
        parts[part] = kept
    return Splits.of(name, parts)


def _take(rows: Rows, index: Sequence[int]) -> Rows:
    chosen = torch.tensor(index, dtype=torch.int64)
    return rows._replace(
        inputs=rows.inputs[chosen],
        targets=rows.targets[chosen],
        asked=rows.asked[chosen],
        lengths=rows.lengths[chosen],
    )

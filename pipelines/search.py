"""What a sweep searches: the ``sweep`` section of a config, and the choices and ranges it names.

A key is written as in an override, ``model.encoder.hidden_size``. Its values are a list of choices, or a range:
``1e-4..1e-2 log``, ``32..256 step 32``, ``0..0.6 points 4``, or the same as ``{low: 1e-4, high: 1e-2, log: true}``.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from seqapp import config
from seqapp.config import Section
from seqapp.errors import ConfigError
from seqapp.registry import Count, InvalidOption, Positive, Size, Where, check_options, options_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

DEFAULT_TRIALS = 20
MOST_CHECKED = 200
"""Combinations checked before the first training, if there are more."""
REFUSED = {
    "task.kind": "trials of different tasks have no score in common",
    "model.kind": "it belongs to the task",
    "train.test": "trials never read the test split; --final does, once, at the end",
    "train.model_name": "trials are not registered",
    "train.devices": "it does not change what is learned",
    "train.nodes": "it does not change what is learned",
}


@dataclass(frozen=True)
class Search:
    """What `seqapp sweep` searches; every other command leaves it alone.

    Args:
        over: key -> a list of choices, or a range such as 1e-4..1e-2 log, 32..256 step 32, 0..0.6 points 4.
        sampler: grid takes every combination, random any, tpe learns from the trials before (Bergstra et al. 2011).
        trials: how many; null takes 20, or the whole grid.
        pruner: what stops a trial early, by its validation score after each epoch: median, if it is below the median of
            the others (Golovin et al. 2017); hyperband, if it is not among the best third of its bracket (Li et al.
            2018).
        startup: trials that are drawn at random and end before tpe learns from any, and median stops any.
        warmup: epochs that each trial may train before it can be stopped.
        seed: of what is drawn; each trial trains from train.seed.
    """

    aside: ClassVar[bool] = True

    over: dict[str, Any] | None = None
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    trials: Size | None = None
    pruner: Literal["median", "hyperband", "none"] = "median"
    startup: Size = 5
    warmup: Count = 1
    seed: Count = 1


@dataclass(frozen=True)
class Choices:
    """Values of a key without an order."""

    key: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """What Optuna is told: a mapping or a list as its YAML."""
        return tuple(config.inline(value) if isinstance(value, dict | list) else value for value in self.values)

    def value_of(self, sampled: Any) -> Any:
        """The value of a label; another object every time."""
        return copy.deepcopy(self.values[self.labels.index(sampled)])

    @property
    def corners(self) -> tuple[Any, ...]:
        """Values that show whether all fit."""
        return self.values

    def suggest(self, trial: Trial) -> Any:
        return trial.suggest_categorical(self.key, self.labels)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.labels)

    def __str__(self) -> str:
        return config.inline(list(self.values))


@dataclass(frozen=True)
class Range:
    """Numbers of a key from ``low`` to ``high``, both included; whole ones if ``whole``."""

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def value_of(self, sampled: Any) -> Any:
        """As it was drawn, but with as many digits as a person wants to see again in a command."""
        if self.whole or self.step is not None:
            return sampled
        return min(max(float(f"{sampled:.4g}"), self.low), self.high)

    @property
    def corners(self) -> tuple[Any, ...]:
        return (self.low, self.high)

    def suggest(self, trial: Trial) -> Any:
        if self.whole:
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" + " log" * self.log + (f" step {self.step:g}" if self.step else "")


Axis = Choices | Range


@dataclass(frozen=True)
class _Span:
    low: float
    high: float
    step: Positive | None = None
    log: bool = False
    points: Annotated[int, Field(ge=2)] | None = None


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TEXT = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})((?:\s+(?:log|step\s+{_NUMBER}|points\s+\d+))*)")
_FITS = "a list of choices, a range such as 1e-4..1e-2 log, 32..256 step 32 or 0..0.6 points 4, or {low: , high: } fits"


def axes_of(
    tree: Mapping[str, Any], over: Mapping[str, Any], sections: Mapping[str, Section],
    origins: Mapping[Where, str], source: str,
) -> list[Axis]:  # fmt: skip
    """What is searched, every combination of it checked as a training would check it.

    Args:
        tree: the config as it is written, without the section ``sweep``.
        over: key -> choices or a range, as written.
        sections: what a config may contain.
        origins: of the values of the tree, and of ``("sweep", "over", key)``.
        source: the file.

    Raises:
        ConfigError: naming file, line and field, and what would fit.
    """
    if not over:
        raise ConfigError(f"{source}: nothing to search; --over 'train.learning_rate=1e-4..1e-2 log' fits, or a "
                          "section sweep: {over: {KEY: CHOICES}}")  # fmt: skip
    axes: list[Axis] = []
    for key, written in over.items():
        at = origins.get(("sweep", "over", key), source)
        if key.startswith("sweep.") or key in REFUSED or key.partition(".")[0] == "data":
            why = REFUSED.get(key, "it is no part of a trial" if key.startswith("sweep.") else
                              "trials on different data have no score in common")  # fmt: skip
            raise ConfigError(f"{at}: sweep.over: {key!r} cannot be searched: {why}")
        axis = _axis(key, written, f"{at}: sweep.over.{key}")
        if isinstance(axis, Range) and axis.whole and axis.step is None and not axis.log:
            axis = _fractions(tree, axis, sections, origins, source)
        axes.append(axis)
    for values in _combinations(axes):
        candidate(tree, values, sections=sections, origins=origins, source=source)
    return axes


def candidate(
    tree: Mapping[str, Any], values: Mapping[str, Any], *, sections: Mapping[str, Section],
    origins: Mapping[Where, str], source: str,
) -> dict[str, Any]:  # fmt: skip
    """The resolved config of one trial.

    Args:
        tree: the config as it is written; left as it is.
        values: key -> value.
        sections: what a config may contain.
        origins: of the values of the tree.
        source: the file.

    Raises:
        ConfigError: naming file, line and field, and what would fit.
    """
    placed, places = copy.deepcopy(dict(tree)), dict(origins)
    for key, value in outer_first(values):
        at = places.get(("sweep", "over", key), source)
        try:
            config.place(placed, key, copy.deepcopy(value), places, at)
        except ConfigError as error:
            raise ConfigError(f"{at}: sweep.over.{key}: {error}") from None
    return config.check(placed, sections=sections, origins=places, source=source)


def outer_first(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Keys and values in the order to apply them: a whole part before what is inside it."""
    return sorted(values.items(), key=lambda pair: pair[0].count("."))


def grid(axes: Sequence[Axis], source: str) -> dict[str, list[Any]]:
    """Key -> every value of it, as Optuna's grid takes them.

    Raises:
        ConfigError: for a range without steps.
    """
    found: dict[str, list[Any]] = {}
    for axis in axes:
        if isinstance(axis, Choices):
            found[axis.key] = list(axis.labels)
        elif axis.whole and not axis.log:
            found[axis.key] = list(range(int(axis.low), int(axis.high) + 1, int(axis.step or 1)))
        elif axis.step is not None:
            count = round((axis.high - axis.low) / axis.step)
            found[axis.key] = [round(axis.low + index * axis.step, 12) for index in range(count + 1)]
        else:
            raise ConfigError(f"{source}: sweep.over.{axis.key}: a grid takes no range without steps; `{axis} points "
                              "4` fits, or another sampler")  # fmt: skip
    return found


def sampler_of_trial(search: Search, axes: Sequence[Axis], source: str, number: int) -> BaseSampler:
    """What draws the values of one trial: by the seed, its number and the trials before it, whatever was cut off."""
    if search.sampler == "grid":  # which goes by the number itself
        return sampler(search, axes, source, search.seed)
    return sampler(search, axes, source, int(np.random.SeedSequence((search.seed, number)).generate_state(1)[0]))


def sampler(search: Search, axes: Sequence[Axis], source: str, seed: int) -> BaseSampler:
    """Optuna's sampler of that name."""
    from optuna import samplers

    if search.sampler == "grid":
        return samplers.GridSampler(grid(axes, source), seed=seed)
    if search.sampler == "random":
        return samplers.RandomSampler(seed)
    return samplers.TPESampler(n_startup_trials=search.startup, seed=seed)


def label(values: Mapping[str, Any]) -> str:
    """The values of a trial as its name tells them: ``lstm, hidden_size 64, learning_rate 0.003``."""
    parts = []
    for (key, value), name in zip(values.items(), short_names(list(values)), strict=True):
        if isinstance(value, dict) and "kind" in value:
            inner = ", ".join(f"{inside} {_short(what)}" for inside, what in value.items() if inside != "kind")
            parts.append(f"{value['kind']} ({inner})" if inner else f"{value['kind']}")
        elif key.endswith(".kind") and sum(other.endswith(".kind") for other in values) == 1:
            parts.append(str(value))
        else:
            parts.append(f"{name} {_short(value)}")
    return ", ".join(parts)


def short_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or the key where two end alike: ``model.encoder.kind`` -> ``encoder``."""
    ends = [key.removesuffix(".kind").rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else config.inline(value)


def _axis(key: str, written: Any, at: str) -> Axis:
    if isinstance(written, str) and (match := _TEXT.fullmatch(written.strip())):
        low, high, rest = match.groups()
        words = rest.split()
        given: dict[str, Any] = {"low": low, "high": high, "log": "log" in words}
        for name in ("step", "points"):
            if name in words:
                given[name] = words[words.index(name) + 1]
        if len(words) != 2 * ("step" in words) + 2 * ("points" in words) + ("log" in words):
            raise ConfigError(f"{at}: {written!r} says something twice; {_FITS}")
        written = {name: config.parse(value, at) if isinstance(value, str) else value for name, value in given.items()}
    if isinstance(written, list):
        return _choices(key, written, at)
    if not isinstance(written, dict):
        raise ConfigError(f"{at}: {written!r} is no range; {_FITS}")
    try:
        span = _Span(**check_options(options_of(_Span), written, (), "a range"))
    except InvalidOption as error:
        raise ConfigError(f"{at}: {error}; {_FITS}") from None
    whole = all(isinstance(written.get(name) or 0, int) for name in ("low", "high", "step"))
    return _numbers(key, span, whole, at)


def _choices(key: str, values: list[Any], at: str) -> Choices:
    if not values:
        raise ConfigError(f"{at}: the list of choices is empty; {_FITS}")
    # 1, 1.0 and true are equal, and Optuna could not tell them apart.
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"{at}: {config.inline(value)} stands twice in the list of choices")
    return Choices(key, tuple(values))


def _numbers(key: str, span: _Span, whole: bool, at: str) -> Axis:
    low, high, step = (
        int(number) if whole and number is not None else number for number in (span.low, span.high, span.step)
    )
    assert low is not None
    assert high is not None
    if not low < high:
        raise ConfigError(f"{at}: low is {low:g} and high is {high:g}; low must be below high")
    if span.log and low <= 0:
        raise ConfigError(f"{at}: low is {low:g}, but only numbers above 0 have a logarithm; 1e-5 would fit")
    if step is not None and (span.log or span.points):
        raise ConfigError(f"{at}: step goes with neither log nor points; `points` with `log` makes geometric steps")
    if span.points:
        space = np.geomspace if span.log else np.linspace
        numbers = [float(f"{number:.6g}") for number in space(low, high, span.points)]
        if whole:
            return Choices(key, tuple(dict.fromkeys(round(number) for number in numbers)))
        return Choices(key, tuple(numbers))
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-9):
        fits = low + math.floor((high - low) / step) * step
        raise ConfigError(f"{at}: from {low:g} in steps of {step:g}, {high:g} is not reached; high: {fits:g} would fit")
    return Range(key, low, high, step, span.log, whole)


def _fractions(
    tree: Mapping[str, Any], axis: Range, sections: Mapping[str, Section], origins: Mapping[Where, str], source: str
) -> Range:
    """``0..1`` means whole numbers only where the option takes no others."""
    try:
        candidate(tree, {axis.key: axis.low + 0.5}, sections=sections, origins=origins, source=source)
    except ConfigError:
        return axis
    return Range(axis.key, axis.low, axis.high, axis.step, axis.log)


def _combinations(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Every combination of choices and bounds; of very many, each value at least once and some more."""
    corners = [axis.corners for axis in axes]
    keys = [axis.key for axis in axes]
    if math.prod(map(len, corners)) <= MOST_CHECKED:
        yield from (dict(zip(keys, values, strict=True)) for values in itertools.product(*corners))
        return
    for index in range(max(map(len, corners))):
        yield {key: values[index % len(values)] for key, values in zip(keys, corners, strict=True)}
    chance = random.Random(0)
    for _ in range(MOST_CHECKED):
        yield {key: chance.choice(values) for key, values in zip(keys, corners, strict=True)}

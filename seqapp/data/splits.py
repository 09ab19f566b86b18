"""What a data source hands over: examples in three splits that share nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from seqapp.errors import ConfigError, DataError
from seqapp.registry import Registry

E = TypeVar("E")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True)
class Splits(Generic[E]):
    """Training, validation and test examples of one data set; ``test`` may be empty.

    Args:
        name: the data set and the choices that shaped it, such as "sst binary, phrases".
        train: examples that weights are fitted on.
        validation: examples that choose between weights; nothing here is also in training.
        test: examples that are read once, for the final figure.
        further: test splits beside ``test``, by name, each reported by itself.
    """

    name: str
    train: Sequence[E]
    validation: Sequence[E]
    test: Sequence[E] = ()
    further: Mapping[str, Sequence[E]] = dataclasses.field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, name: str, parts: Mapping[str, Sequence[E]]) -> Splits[E]:
        """The splits by name; other names than train, validation and test are further test splits."""
        known = {part: parts[part] for part in ("train", "validation", "test") if part in parts}
        further = {part: examples for part, examples in parts.items() if part not in known}
        return cls(name, known["train"], known["validation"], known.get("test", ()), further=further)

    def all(self) -> dict[str, Sequence[E]]:
        """Every split by name: train, validation, test, and the further ones."""
        return {"train": self.train, "validation": self.validation, "test": self.test, **self.further}

    def digests(self) -> dict[str, str]:
        """SHA-256 of each split's content, in order: equal digests mean equal data."""
        return {name: digest(examples) for name, examples in self.all().items()}


SOURCES: Registry[Splits[Any]] = Registry("data source")


def digest(examples: Sequence[Any]) -> str:
    """SHA-256 over the examples as JSON lines.

    Args:
        examples: dataclass instances.
    """
    sha = hashlib.sha256()
    for example in examples:
        sha.update(json.dumps(dataclasses.astuple(example), ensure_ascii=False).encode("utf-8", "surrogatepass"))
        sha.update(b"\n")
    return sha.hexdigest()


class Keyed(Protocol):
    """What may not stand in two splits: equal keys are the same text, ``place`` is where it is from."""

    @property
    def key(self) -> str:
        """Equal for what counts as equal."""

    @property
    def place(self) -> str:
        """A file, and a line of it where it has several."""


K = TypeVar("K", bound=Keyed)


def remove_shared(parts: dict[str, list[K]], what: str = "row") -> None:
    """Remove from validation what is in test as well, and from train what is in either, with a warning.

    Args:
        parts: train, validation and test; changed in place.
        what: one of them is called so.

    Raises:
        DataError: if nothing is left of a part.
    """
    for name, others in (("validation", ["test"]), ("train", ["validation", "test"])):
        taken = {one.key for other in others for one in parts[other]}
        kept = [one for one in parts[name] if one.key not in taken]
        removed = len(parts[name]) - len(kept)
        if removed and not kept:
            problem = f"every {name} {what} also stands in {' or '.join(others)}"
            raise DataError(f"{parts[name][0].place}: {problem}; files with texts of their own would fit")
        if removed:
            _log.warning("%d %s %s(s) removed: their text also stands in %s", removed, name, what, " or ".join(others))
        parts[name] = kept


def training_share(shares: Mapping[str, float]) -> float:
    """What is left to train on when ``shares``, by the name of the split, are set aside.

    Raises:
        ConfigError: if that is nothing.
    """
    left = 1 - sum(shares.values())
    if left < 1e-9:
        total = " + ".join(f"{name}_share {share:g}" for name, share in shares.items())
        raise ConfigError(f"{total} leaves nothing to train on; below 1 together would fit")
    return left


def split_by_group(
    examples: Sequence[E], group: Callable[[E], Hashable], shares: Sequence[float], seed: int
) -> list[list[E]]:
    """Deal ``examples`` into ``len(shares)`` parts, whole groups at a time, in a random order fixed by ``seed``.

    Args:
        examples: what to split; each part keeps this order.
        group: examples with an equal group (the same movie, speaker or document) stay together.
        shares: the wanted share of each part; they sum to 1.
        seed: of the shuffle.

    Raises:
        DataError: if a part with a positive share would be empty.
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise ValueError(f"shares must be non-negative and sum to 1, not {list(shares)}")
    members: dict[Hashable, int] = {}
    for example in examples:
        members[group(example)] = members.get(group(example), 0) + 1
    order = list(members)
    random.Random(seed).shuffle(order)
    total, dealt, part = len(examples), 0, 0
    part_of: dict[Hashable, int] = {}
    bounds = [sum(shares[: index + 1]) * total for index in range(len(shares))]
    for key in order:
        while part < len(shares) - 1 and dealt + members[key] / 2 > bounds[part]:
            part += 1
        part_of[key] = part
        dealt += members[key]
    parts: list[list[E]] = [[] for _ in shares]
    for example in examples:
        parts[part_of[group(example)]].append(example)
    for share, content in zip(shares, parts, strict=True):
        if share > 0 and not content:
            raise DataError(f"{len(order)} group(s) in {total} example(s) are too few to split by {list(shares)}")
    return parts

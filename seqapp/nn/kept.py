"""What is computed of weights that no training changes is kept as long as they live."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

K = TypeVar("K")

_KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()


def stays(weights: Sequence[Tensor]) -> bool:
    """Whether a change of the weights shows: a version does not tell what fused optimizers and `.data` change."""
    for weight in weights:  # noqa: SIM110  (a third of the time of a generator, and every forward pass asks)
        if weight.requires_grad or weight.is_inference():
            return False
    return True


def kept(weights: Sequence[Tensor], key: Hashable, make: Callable[[], K]) -> K:
    """What ``make`` gives for the weights as they stand now; it is called once where :func:`stays` holds.

    Args:
        weights: all that ``make`` reads; what is kept goes when the first of them does.
        key: tells apart several things that are made of the same weights.
        make: called again where a weight has changed, and always where changes would not show.
    """
    if not stays(weights):
        return make()
    versions, of = [weight._version for weight in weights], weights[1:]
    known = _KEPT.setdefault(weights[0], {})  # type: ignore[no-untyped-call]
    made: K
    made, others, before = known.get(key, (None, (), ()))
    if before != versions or not all(map(operator.is_, others, of)):
        made = make()
        known[key] = made, of, versions
    return made

"""How often training feeds back the right answer and not the network's own: teacher forcing and scheduled sampling.

The rate is the probability that a step reads the right answer to the step before (Bengio, Vinyals, Jaitly & Shazeer
2015, section 2.4); with the rest it reads what the network itself answered. Rates are functions of how far training
has come, from 0 at its start to 1 at its end, so that a schedule does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from seqapp.registry import Registry, Share

Rate = Callable[[float], float]
"""Progress of the training in [0, 1] -> probability of feeding back the right answer."""

Chance = Annotated[float, Field(ge=0, le=1)]

RATES: Registry[Rate] = Registry("teacher forcing rate")


@RATES.register("constant")
def constant(*, rate: Chance = 1.0) -> Rate:
    """The same rate from start to end.

    Args:
        rate: 1 always feeds back the right answer, 0 always the network's own.
    """
    return lambda progress: rate


@RATES.register("linear")
def linear(*, start: Chance = 1.0, end: Chance = 0.0) -> Rate:
    """start + (end - start) p.

    Args:
        start: the rate at the start.
        end: the rate at the end.
    """
    return lambda progress: start + (end - start) * progress


@RATES.register("exponential")
def exponential(*, end: Share = 0.05) -> Rate:
    """end^p, which is the paper's k^i with k^(number of steps) = end.

    Args:
        end: the rate at the end.
    """
    return lambda progress: end**progress


@RATES.register("inverse_sigmoid")
def inverse_sigmoid(*, k: Annotated[float, Field(gt=1)] = 50.0, half: Share = 0.5) -> Rate:
    """1 / (1 + k^(p / half - 1)), which is the paper's k / (k + exp(i / k)) with i = k ln(k) p / half.

    Args:
        k: greater is steeper; the rate starts at k / (k + 1).
        half: the progress at which the rate is 1/2.
    """
    return lambda progress: 1 / (1 + k ** (progress / half - 1))


def mix(right: Tensor, own: Tensor, rate: float) -> Tensor:
    """Row by row ``right`` with probability ``rate``, else ``own``; both (B, ...).

    At rate 1 it is ``right`` and at rate 0 ``own``, exactly.
    """
    forced = torch.rand(len(right), device=right.device) < rate
    return torch.where(forced.view(-1, *[1] * (right.dim() - 1)), right, own)

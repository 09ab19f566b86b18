"""From hidden vectors to classes: a head owns the projection, the exact logits and the training loss.

N rows, I inputs, V classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seqapp.registry import Probability, Registry


class Head(nn.Module, ABC):
    """LAW: in eval mode, ``loss(x, targets) == cross_entropy(logits(x), targets)``."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Exact scores: x (N, I) -> (N, V)."""

    @abstractmethod
    def loss(self, x: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Training loss of N rows: x (N, I), targets (N,) -> scalar.

        The mean over the rows or, with weights (N,), their weighted sum.
        """


HEADS: Registry[Head] = Registry("head", given=("input_size", "classes"))


@HEADS.register("full")
class FullSoftmax(Head):
    """One linear layer and a softmax over every class.

    Args:
        input_size: I, given by what lies below.
        classes: V, given by the data.
        label_smoothing: share of the target's probability spread over all classes in training (Szegedy et al. 2016).
    """

    def __init__(self, input_size: int, classes: int, *, label_smoothing: Probability = 0.0) -> None:
        super().__init__()
        self.project = nn.Linear(input_size, classes)
        self.label_smoothing = label_smoothing

    def logits(self, x: Tensor) -> Tensor:
        scores: Tensor = self.project(x)
        return scores.float() if scores.dtype.itemsize < 4 else scores

    def loss(self, x: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        if weights is None:
            return cross_entropy(self.logits(x), targets, label_smoothing=smoothing)
        return cross_entropy(self.logits(x), targets, reduction="none", label_smoothing=smoothing) @ weights

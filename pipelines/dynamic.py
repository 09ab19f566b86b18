"""Dynamic evaluation: a language model that goes on learning from the text it is scored on, each token scored first.

Source: Krause, Kahembwe, Murray & Renals 2018, "Dynamic evaluation of neural sequence models".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from seqapp.data.streams import Batch, Pieces, Span, Stream
from seqapp.data.tokenizers import UNK
from seqapp.errors import SeqappError
from seqapp.metrics import Metric, Ratio, Surprise, add, read
from seqapp.models.language_model import LanguageModel
from seqapp.nn.recurrent import Carry, NotFinite, map_carry

BLOCK = 2**15
"""Weights updated at a time, so that what an update reads and writes stays in the cache."""
TINY = 1e-30
"""Keeps a share of nothing defined."""


class Diverged(SeqappError):
    """The learning rate was so high that the weights left the range of numbers."""


@torch.inference_mode(False)
def dynamic_scores(
    model: LanguageModel,
    stream: Stream,
    *,
    learning_rate: float = 3e-4,
    decay: float = 1e-4,
    steps: int = 32,
    rule: Literal["rms", "sgd"] = "rms",
    epsilon: float = 1e-5,
    squares: Sequence[Tensor] | None = None,
) -> dict[str, Metric]:
    """How well ``model`` foretells ``stream`` when it learns from each segment once that has been scored.

    After each segment, with g the gradient of its mean loss and w0 the trained weights,

    - rms: w <- w + min(decay * r / mean(r), 1) (w0 - w) - learning_rate * g / (r + epsilon), where r is the root of the
      mean square of the gradients so far, mean(r) its mean over all weights;
    - sgd: w <- w + decay (w0 - w) - learning_rate * g.

    LAW: the score of a token depends on the tokens before it alone, and at learning rate 0 it is that of the model
    itself, reading the stream as one row with all of its past. ``model`` is left as it is. Gradients are dense, so that
    time and memory of an update grow with the vocabulary, whatever the head.

    Args:
        model: a trained one, without a condition.
        stream: the text, read once and in order.
        learning_rate: in units of a weight for rms, where a usual step of a weight is this long.
        decay: share of the way back to the trained weights at each segment, for rms that of the average weight.
        steps: tokens of a segment.
        rule: how far a weight goes.
        epsilon: rms only: keeps weights that have hardly had a gradient from leaping.
        squares: rms only: the mean squares to use throughout, from :func:`mean_squares`; None takes those of the text
            scored so far.

    Returns:
        The metrics of a static evaluation.

    Raises:
        ValueError: if an option does not fit.
        SeqappError: if the model has a condition, or as :class:`Diverged`.
    """
    if not (0 <= learning_rate < math.inf and 0 <= decay <= 1 and steps >= 1 and 0 < epsilon < math.inf):
        raise ValueError(
            f"learning_rate {learning_rate}, decay {decay}, steps {steps}, epsilon {epsilon}: a finite rate from 0 on, "
            "a decay from 0 to 1, at least one step and an epsilon above 0 fit"
        )
    if squares is not None and rule == "sgd":
        raise ValueError("squares are for the rule 'rms'; None fits 'sgd'")
    student = _student(model)
    weights = list(student.parameters())
    if squares is not None and [tuple(one.shape) for one in squares] != [tuple(weight.shape) for weight in weights]:
        raise ValueError("squares: one tensor for each parameter of the model, of its shape, fits; mean_squares of "
                         "this model gives them")  # fmt: skip
    update = (
        _SGD(weights, learning_rate, decay) if rule == "sgd" else _RMS(weights, learning_rate, decay, epsilon, squares)
    )
    totals: dict[str, Metric] = {}
    tokens = 0
    try:
        for batch, loss, gradients in _segments(student, stream, steps):
            count = batch.targets.numel()
            found: dict[str, Metric] = {
                "nll": Surprise(loss.double().cpu() * count, count, batch.characters),
                "unknown": Ratio("unknown", (batch.targets == UNK).sum(), count),
            }
            totals, tokens = add(totals, found), tokens + count
            update(gradients)
    except NotFinite as error:
        if not tokens:
            raise SeqappError(f"the model cannot be evaluated: {error}") from None
        raise Diverged(f"the weights are no longer finite after {tokens:,} tokens; a learning_rate below "
                       f"{learning_rate:g} fits") from None  # fmt: skip
    return totals


@torch.inference_mode(False)
def mean_squares(model: LanguageModel, stream: Stream, *, steps: int = 32, segments: int = 2000) -> list[Tensor]:
    """Mean square of the gradient of each weight over segments of ``steps`` tokens of training text.

    Args:
        model: stays as it is.
        stream: training text, of which the first ``segments`` segments are read.
        steps: as in :func:`dynamic_scores`.
        segments: how many at most.

    Returns:
        One tensor for each parameter of ``model``.

    Raises:
        SeqappError: as :func:`dynamic_scores`.
    """
    student = _student(model)
    squares = [torch.zeros_like(weight, requires_grad=False) for weight in student.parameters()]
    head = Stream(stream.ids[: steps * segments], stream.characters)
    for _, _, gradients in _segments(student, head, steps):
        for square, gradient in zip(squares, gradients, strict=True):
            square.addcmul_(gradient, gradient)
    return [square / math.ceil(len(head) / steps) for square in squares]


def search(model: LanguageModel, stream: Stream, **choices: Sequence[Any]) -> list[tuple[dict[str, Any], float]]:
    """Nats per token of :func:`dynamic_scores` for every combination of options, the best first.

    ``search(model, validation, learning_rate=(5e-5, 1e-4, 2e-4), decay=(0.0, 1e-3))`` tries six; what diverges has
    infinite nats.

    Args:
        model: stays as it is.
        stream: validation text.
        choices: an option of :func:`dynamic_scores` -> the values to try.
    """
    found = []
    for values in product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        try:
            nats = read(dynamic_scores(model, stream, **options))["nll"]
        except Diverged:
            nats = math.inf
        found.append((options, nats))
    return sorted(found, key=lambda entry: entry[1])


def _student(model: LanguageModel) -> LanguageModel:
    if model.condition is not None:
        raise SeqappError("dynamic evaluation reads one text on and on; a model with a condition reads texts of their "
                          "own, so one without fits")  # fmt: skip
    student = copy.deepcopy(model).eval().requires_grad_(True)
    for weight in student.parameters():
        weight.data = weight.data.contiguous()  # so that it can be changed through its flat parts
    return student


def _segments(model: LanguageModel, stream: Stream, steps: int) -> Iterator[tuple[Batch, Tensor, tuple[Tensor, ...]]]:
    """Each segment, its mean loss in nats and the gradients of that; the caller changes the weights in between."""
    weights = list(model.parameters())
    device = weights[0].device
    carry: Carry = None
    for batch in Pieces(stream, [Span(0, len(stream))], steps=steps):
        with torch.enable_grad():
            x, carry = model(batch.inputs.to(device), None, carry)
            loss = model.head.loss(x[0], batch.targets[0].to(device))
            if not loss.isfinite():
                raise NotFinite(f"the loss is {loss.item()}")
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        carry = map_carry(Tensor.detach, carry)
        yield batch, loss.detach(), gradients


def _blocks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """All numbers of ``tensors`` in flat parts that share their memory wherever they are contiguous."""
    return [block for tensor in tensors for block in torch.split(tensor.detach().reshape(-1), BLOCK)]


class _SGD:
    """w <- w + decay (w0 - w) - learning_rate g."""

    def __init__(self, weights: Sequence[Tensor], learning_rate: float, decay: float) -> None:
        self.weights = _blocks(weights)
        self.trained = [block.clone() for block in self.weights]
        self.learning_rate, self.decay = learning_rate, decay

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        for w, w0, g in zip(self.weights, self.trained, _blocks(gradients), strict=True):
            w.lerp_(w0, self.decay).sub_(g, alpha=self.learning_rate)


class _RMS:
    """w <- w + min(decay r / mean(r), 1) (w0 - w) - learning_rate g / (r + epsilon)."""

    def __init__(self, weights: Sequence[Tensor], learning_rate: float, decay: float, epsilon: float,
                 squares: Sequence[Tensor] | None) -> None:  # fmt: skip
        self.weights = _blocks(weights)
        self.trained = [block.clone() for block in self.weights]
        self.learning_rate, self.decay, self.epsilon = learning_rate, decay, epsilon
        self.given = squares is not None
        self.squares = [block.clone() for block in _blocks(squares or [torch.zeros_like(w) for w in weights])]
        self.roots = [square.sqrt() for square in self.squares]
        self.segments = 0

    def __call__(self, gradients: Sequence[Tensor]) -> None:
        parts = _blocks(gradients)
        if not self.given:
            self.segments += 1
            for square, root, g in zip(self.squares, self.roots, parts, strict=True):
                square.mul_(1 - 1 / self.segments).addcmul_(g, g, value=1 / self.segments)
                torch.sqrt(square, out=root)
        mean = sum(float(root.sum(dtype=torch.float64)) for root in self.roots) / sum(map(len, self.roots))
        share = self.decay / max(mean, TINY)
        for w, w0, root, g in zip(self.weights, self.trained, self.roots, parts, strict=True):
            if self.decay:
                w.lerp_(w0, (root * share).clamp_(max=1))
            w.addcdiv_(g, root + self.epsilon, value=-self.learning_rate)

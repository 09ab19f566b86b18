"""The law every causal layer obeys, and the layers made of other layers.

B batch, T time, I inputs, O outputs, H hidden.

A *carry* is what a layer hands from one step to the next: a tensor or a tuple of carries, every leaf ``(B, ...)``.
Reordering beams, splitting a batch and masking are therefore one :func:`map_carry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seqapp.nn.dropout import drop_mask
from seqapp.registry import Probability, Registry, Spec

Carry = Any
"""A tensor, or a tuple of carries; every leaf is ``(B, ...)``."""

C = TypeVar("C")


def map_carry(function: Callable[..., Tensor], carry: C, *others: C) -> C:
    """``function`` applied leaf by leaf: ``map_carry(lambda leaf: leaf[order], carry)`` reorders rows."""
    if isinstance(carry, Tensor):
        return cast(C, function(carry, *others))
    return cast(C, tuple(map_carry(function, *leaves) for leaves in zip(carry, *others, strict=True)))  # type: ignore[call-overload]


def select(condition: Tensor, carry: C, other: C) -> C:
    """Row by row ``carry`` where ``condition`` (B,) holds, else ``other``."""

    def choose(leaf: Tensor, other_leaf: Tensor) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (leaf.dim() - 1)), leaf, other_leaf)

    return map_carry(choose, carry, other)


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """(B, T) mask, True where a position is inside its row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def gather(y: Tensor, lengths: Tensor | None) -> Tensor:
    """The last valid output of each row: y (B, T, O), lengths (B,) -> (B, O)."""
    if lengths is None:
        return y[:, -1]
    return y[torch.arange(len(y), device=y.device), lengths - 1]


class _ReorderRows(torch.autograd.Function):
    """``rows[index]`` for an index that is its own inverse, so that the gradient is the same cheap copy."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return cast(Tensor, _ReorderRows.apply(gradients[0], index)), None  # type: ignore[no-untyped-call]


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, T, O), zero past each row's length; where, not a product, so that NaN does not survive either."""
    if lengths is None:
        return x
    return torch.where(valid_mask(lengths, x.shape[1])[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def flip(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Each row reversed within its length, padding left where it is: x (B, T, ...) -> (B, T, ...)."""
    if lengths is None:
        return x.flip(1)
    size = x.shape[1]
    time = torch.arange(size, device=x.device)
    source = torch.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)
    index = (source + size * torch.arange(len(x), device=x.device)[:, None]).flatten()
    return cast(Tensor, _ReorderRows.apply(x.flatten(0, 1), index)).view_as(x)  # type: ignore[no-untyped-call]


def scan(
    step: Callable[[C, Tensor], tuple[C, Tensor]], carry: C, x: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, C]:
    """The slow readable truth: ``step`` applied position by position.

    Args:
        step: carry, x (B, I) -> carry, y (B, O).
        carry: the state before the first position.
        x: (B, T, I).
        lengths: (B,) valid positions per row; None when all are.

    Returns:
        y (B, T, O), zero past each row's length, and the carry at each row's end.
    """
    outputs = []
    for t, now in enumerate(x.unbind(1)):
        new, y = step(carry, now)
        if lengths is not None:
            live = t < lengths
            new, y = select(live, new, carry), select(live, y, torch.zeros_like(y))
        carry = new
        outputs.append(y)
    return torch.stack(outputs, 1), carry


class NotFinite(ValueError):
    """A layer was given NaN or infinity."""


class Encoder(nn.Module, ABC):
    """Anything that maps x (B, T, I) to y (B, T, O); it need not be causal."""

    input_size: int
    output_size: int
    has_last: bool = True
    """Whether :meth:`last` can tell which outputs have read the whole row."""

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Carry]:
        """y (B, T, O), zero past each row's length, and the carry at each row's end."""

    def last(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """The outputs (B, O) that have read the whole row."""
        return gather(y, lengths)

    def check_input(self, x: Tensor, lengths: Tensor | None) -> None:
        """Raise ValueError, naming this layer, unless x is (B, T, I) with T >= 1 and lengths fit."""
        name = type(self).__name__
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ValueError(f"{name}: x has shape {tuple(x.shape)}; (batch, time, {self.input_size}) fits")
        if not x.is_floating_point():
            raise ValueError(f"{name}: x has dtype {x.dtype}; a floating-point one fits")
        own = next((parameter.dtype for parameter in self.parameters()), x.dtype)
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name}: x has dtype {x.dtype}; {own}, the weights', fits")
        if x.shape[1] == 0:
            raise ValueError(f"{name}: x has no time steps; at least one fits")
        if lengths is not None:
            if lengths.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"{name}: lengths have dtype {lengths.dtype}; torch.int64 fits")
            if lengths.shape != x.shape[:1]:
                raise ValueError(f"{name}: lengths have shape {tuple(lengths.shape)}; ({x.shape[0]},) fits")
            low, high = (int(end) for end in lengths.aminmax()) if len(lengths) else (1, 1)
            if low < 1 or high > x.shape[1]:
                raise ValueError(f"{name}: lengths go from {low} to {high}; 1 to {x.shape[1]} fits")

    def prepare_input(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Checked x with zeros on its padding, and lengths, or None when there is no padding.

        Raises:
            NotFinite: if a valid position holds NaN or infinity, naming this layer and the place.
            ValueError: if a shape does not fit.
        """
        self.check_input(x, lengths)
        if lengths is not None:
            if bool((lengths == x.shape[1]).all()):
                lengths = None
            else:
                x = zero_padding(x, lengths)
        self.check_finite(x, "x holds", "input")
        return x, lengths

    def check_finite(self, x: Tensor, holds: str, unit: str) -> None:
        """Raise NotFinite, naming this layer and the place, if x (B, T, I) holds NaN or infinity."""
        # The sum is finite unless a value is not or the sum itself overflows: one cheap pass in the usual case.
        if bool(x.detach().sum().isfinite()):
            return
        bad = (~x.isfinite()).nonzero()
        if len(bad):
            row, step, place = bad[0].tolist()
            raise NotFinite(f"{type(self).__name__}: {holds} {x[row, step, place].item()} in row {row}, step {step}, "
                            f"{unit} {place} (places count from 0); finite numbers fit")  # fmt: skip


class Recurrent(Encoder, Generic[C]):
    """A causal layer. LAW: ``forward(x) == scan(step, x)``, whatever kernel runs.

    Past a row's length the output is zero, the carry is frozen, and what the padding holds never matters: a batch
    answers exactly as its rows do alone.
    """

    recurrent_weights: tuple[str, ...] = ()
    """Parameters, by name, that multiply what comes back from the step before."""

    @abstractmethod
    def initial_carry(self, batch_size: int, like: Tensor) -> C:
        """The carry before the first step, with the dtype and device of ``like``."""

    @abstractmethod
    def step(self, carry: C, x: Tensor) -> tuple[C, Tensor]:
        """One position: carry, x (B, I) -> carry, y (B, O)."""

    def renew(self, carry: C) -> C:
        """The same state, with dropout masks drawn anew in training: a stream read on in pieces asks at each piece.

        Masks are drawn when a row starts and last as long as its carry is handed on.
        """
        return carry

    def map_state(self, function: Callable[[Tensor], Tensor], carry: C) -> C:
        """``function`` applied to each leaf that tells of what was read; masks of dropout stay as they are."""
        return map_carry(function, carry)

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: C) -> tuple[Tensor, C]:
        """All positions at once, on checked input whose padding is zero. A faster kernel overrides this."""
        return scan(self.step, carry, x, lengths)

    def read_back(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, C]:
        """From each row's last position to its first, on checked input whose padding is zero.

        Returns:
            y (B, T, O), each output at the position that was read last for it, and the carry at each row's start.
        """
        y, carry = self.unroll(flip(x, lengths), lengths, self.initial_carry(len(x), x))
        return flip(y, lengths), carry

    def forward(self, x: Tensor, lengths: Tensor | None = None, carry: C | None = None) -> tuple[Tensor, C]:
        """Run over x (B, T, I).

        Args:
            x: (B, T, I).
            lengths: (B,) valid positions per row, each at least 1; None when all are valid.
            carry: where to go on from; None starts afresh.

        Returns:
            y (B, T, O), zero past each row's length, and the carry at each row's end.

        Raises:
            NotFinite: if a valid position holds NaN or infinity.
            ValueError: if a shape does not fit, naming the layer, what came and what fits.
        """
        x, lengths, carry = self.prepare(x, lengths, carry)
        return self.unroll(x, lengths, carry)

    def prepare(self, x: Tensor, lengths: Tensor | None, carry: C | None) -> tuple[Tensor, Tensor | None, C]:
        """Checked input with zeros on its padding, lengths or None when there is no padding, and a carry that fits.

        Raises:
            NotFinite: if a valid position holds NaN or infinity.
            ValueError: if a shape does not fit.
        """
        x, lengths = self.prepare_input(x, lengths)
        if carry is None:
            carry = self.initial_carry(len(x), x)
        else:
            # On the meta device a fresh carry costs no memory and draws no random number.
            self._check_carry(carry, self.initial_carry(len(x), x.new_empty(0, device="meta")))
        return x, lengths, carry

    def _check_carry(self, carry: C, fresh: C) -> None:
        came, fits = _shapes(carry), _shapes(fresh)
        if came != fits:
            raise ValueError(f"{type(self).__name__}: carry has shape {came}; {fits} fits")
        leaves: list[tuple[Tensor, Tensor]] = []
        map_carry(lambda leaf, other: leaves.append((leaf, other)) or leaf, carry, fresh)  # type: ignore[func-returns-value]
        for leaf, other in leaves:
            if leaf.dtype != other.dtype and not torch.is_autocast_enabled(leaf.device.type):
                raise ValueError(f"{type(self).__name__}: carry has dtype {leaf.dtype}; {other.dtype} fits")


class Masked(Recurrent[C]):
    """A layer whose recurrent signal can be multiplied by a mask (B, ``recurrent_size``), one for a whole row."""

    recurrent_size: int
    recurrent_weights = ("W",)

    @abstractmethod
    def step(self, carry: C, x: Tensor, mask: Tensor | None = None) -> tuple[C, Tensor]:
        """One position: carry, x (B, I) -> carry, y (B, O)."""

    @abstractmethod
    def unroll(self, x: Tensor, lengths: Tensor | None, carry: C, mask: Tensor | None = None) -> tuple[Tensor, C]:
        """All positions at once, on checked input whose padding is zero."""


def _shapes(carry: Carry) -> Any:
    if isinstance(carry, Tensor):
        return tuple(carry.shape)
    return tuple(_shapes(leaf) for leaf in carry) if isinstance(carry, tuple) else type(carry).__name__


RECURRENT: Registry[Recurrent[Any]] = Registry("recurrent layer", given=("input_size",))
ENCODERS: Registry[Encoder] = Registry("encoder", given=("input_size",), includes=RECURRENT)


class Stack(Recurrent[tuple[Carry, ...]]):
    """Layers on top of each other: the outputs of one are the inputs of the next.

    Args:
        layers: from the input upwards; sizes must meet.
        dropout: share of activations dropped between layers in training, never on the recurrent path.
        residual: add a layer's input to its output wherever the sizes are equal.
        skip_to_output: give the outputs of all layers side by side instead of the last one's (Graves 2013).

    Raises:
        ValueError: if there is no layer or two sizes do not meet.
    """

    def __init__(self, layers: Sequence[Recurrent[Any]], *, dropout: Probability = 0.0, residual: bool = False,
                 skip_to_output: bool = False) -> None:  # fmt: skip
        super().__init__()
        _check_sizes(layers)
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        self.residual, self.skip_to_output = residual, skip_to_output
        sizes = [layer.output_size for layer in layers]
        self.input_size, self.output_size = layers[0].input_size, sum(sizes) if skip_to_output else sizes[-1]

    def initial_carry(self, batch_size: int, like: Tensor) -> tuple[Carry, ...]:
        return tuple(cast(Recurrent[Any], layer).initial_carry(batch_size, like) for layer in self.layers)

    def renew(self, carry: tuple[Carry, ...]) -> tuple[Carry, ...]:
        return tuple(cast(Recurrent[Any], layer).renew(one) for layer, one in zip(self.layers, carry, strict=True))

    def map_state(self, function: Callable[[Tensor], Tensor], carry: tuple[Carry, ...]) -> tuple[Carry, ...]:
        layers = (cast(Recurrent[Any], layer) for layer in self.layers)
        return tuple(layer.map_state(function, one) for layer, one in zip(layers, carry, strict=True))

    def step(self, carry: tuple[Carry, ...], x: Tensor) -> tuple[tuple[Carry, ...], Tensor]:
        after, outputs = [], []
        for index, layer in enumerate(self.layers):
            below = self.dropout(x) if index else x
            new, y = cast(Recurrent[Any], layer).step(carry[index], below)
            after.append(new)
            x = y + below if self.residual and y.shape == below.shape else y
            outputs.append(x)
        return tuple(after), torch.cat(outputs, -1) if self.skip_to_output else x

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: tuple[Carry, ...]) -> tuple[Tensor, tuple[Carry, ...]]:
        return _run_layers(self, x, lengths, carry)


class EncoderStack(Encoder):
    """Layers on top of each other where at least one reads both ways, so that only :meth:`forward` exists.

    Args:
        layers: from the input upwards; sizes must meet.
        dropout: share of activations dropped between layers in training.
        residual: add a layer's input to its output wherever the sizes are equal.
        skip_to_output: give the outputs of all layers side by side instead of the last one's (Graves 2013).

    Raises:
        ValueError: if there is no layer or two sizes do not meet.
    """

    def __init__(self, layers: Sequence[Encoder], *, dropout: Probability = 0.0, residual: bool = False,
                 skip_to_output: bool = False) -> None:  # fmt: skip
        super().__init__()
        _check_sizes(layers)
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        self.residual, self.skip_to_output = residual, skip_to_output
        sizes = [layer.output_size for layer in layers]
        self.input_size, self.output_size = layers[0].input_size, sum(sizes) if skip_to_output else sizes[-1]
        self.has_last = all(layer.has_last for layer in (layers if skip_to_output else layers[-1:]))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, tuple[Carry, ...]]:
        x, lengths = self.prepare_input(x, lengths)
        return _run_layers(self, x, lengths, None)

    def last(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        layers = [cast(Encoder, layer) for layer in self.layers]
        if not self.skip_to_output:
            return layers[-1].last(y, lengths)
        parts = torch.split(y, [layer.output_size for layer in layers], -1)
        return torch.cat([layer.last(part, lengths) for layer, part in zip(layers, parts, strict=True)], -1)


def _run_layers(
    stack: Stack | EncoderStack, x: Tensor, lengths: Tensor | None, carry: tuple[Carry, ...] | None
) -> tuple[Tensor, tuple[Carry, ...]]:
    after, outputs = [], []
    for index, layer in enumerate(stack.layers):
        below = stack.dropout(x) if index else x
        y, new = layer(below, lengths) if carry is None else layer(below, lengths, carry[index])
        after.append(new)
        x = y + below if stack.residual and y.shape == below.shape else y
        outputs.append(x)
    return torch.cat(outputs, -1) if stack.skip_to_output else x, tuple(after)


def _check_sizes(layers: Sequence[Encoder]) -> None:
    if not layers:
        raise ValueError("a stack needs at least one layer")
    for index, (below, above) in enumerate(pairwise(layers)):
        if below.output_size != above.input_size:
            raise ValueError(
                f"layer {index} gives {below.output_size} outputs, layer {index + 1} takes {above.input_size}"
            )


class Bidirectional(Encoder):
    """Two causal layers, one run forwards and one backwards, with separate parameters.

    It has only :meth:`forward`: a decoder cannot accept it. Source: Schuster & Paliwal 1997.

    Args:
        ahead: reads from the first position to the last.
        back: reads from the last position to the first.
        merge: how the two outputs of a position become one.

    Raises:
        ValueError: if the two layers take or, unless concatenated, give different sizes.
    """

    def __init__(
        self, ahead: Recurrent[Any], back: Recurrent[Any], *, merge: Literal["concat", "sum", "mean"] = "concat"
    ) -> None:
        super().__init__()
        if ahead.input_size != back.input_size:
            raise ValueError(f"the directions take {ahead.input_size} and {back.input_size} inputs; equal sizes fit")
        if merge != "concat" and ahead.output_size != back.output_size:
            raise ValueError(f"merge {merge!r} needs directions of equal size, not {ahead.output_size} and "
                             f"{back.output_size}")  # fmt: skip
        self.ahead, self.back, self.merge = ahead, back, merge
        self.input_size = ahead.input_size
        self.output_size = ahead.output_size + (back.output_size if merge == "concat" else 0)
        self.has_last = merge == "concat"

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, tuple[Carry, Carry]]:
        """y (B, T, O) and the carries of both directions at the end of their reading."""
        x, lengths = self.prepare_input(x, lengths)
        if _is_watched(self.ahead) or _is_watched(self.back):
            y_ahead, carry_ahead = self.ahead(x, lengths)
            y_back, carry_back = self.back(flip(x, lengths), lengths)
            y_back = flip(y_back, lengths)
        else:  # what was checked once is not checked again
            y_ahead, carry_ahead = self.ahead.unroll(x, lengths, self.ahead.initial_carry(len(x), x))
            y_back, carry_back = self.back.read_back(x, lengths)
        if self.merge == "concat":
            return torch.cat([y_ahead, y_back], -1), (carry_ahead, carry_back)
        y = y_ahead + y_back
        return (y / 2 if self.merge == "mean" else y), (carry_ahead, carry_back)

    def last(self, y: Tensor, lengths: Tensor | None) -> Tensor:
        """The forward output at the row's end beside the backward output at its start: (B, O).

        Raises:
            ValueError: if the outputs were merged, since they cannot be told apart then.
        """
        if not self.has_last:
            raise ValueError(f"the last outputs of a birnn are known only with merge: concat, not {self.merge!r}")
        size = self.ahead.output_size
        return torch.cat([gather(y[..., :size], lengths), y[:, 0, size:]], -1)


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody wants to see what the layer is called with, or what it gives."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks)


class Variational(Recurrent[tuple[C, Tensor, Tensor]]):
    """A layer whose dropout keeps one mask for a whole row, on its input and on its recurrent path.

    Source: Gal & Ghahramani 2016. The carry holds the masks, so a row handed over goes on with its own.

    Args:
        layer: what is run.
        input_dropout: probability that a unit of the input is dropped.
        recurrent_dropout: probability that a unit of the recurrent signal is dropped on its way back into the layer.

    Raises:
        ValueError: if the layer has no recurrent signal to drop from.
    """

    def __init__(
        self, layer: Recurrent[C], *, input_dropout: Probability = 0.0, recurrent_dropout: Probability = 0.0
    ) -> None:
        super().__init__()
        if recurrent_dropout and not isinstance(layer, Masked):
            name = type(layer).__name__
            if isinstance(layer, Stack | Variational | WeightDropout):
                raise ValueError(f"{name}: recurrent_dropout is for one layer; variational around the layers inside "
                                 "it fits")  # fmt: skip
            raise ValueError(f"{name} multiplies no recurrent signal by weights, so there is nothing for "
                             "recurrent_dropout to drop; 0 fits")  # fmt: skip
        self.layer = layer
        self.input_size, self.output_size = layer.input_size, layer.output_size
        self.recurrent_weights = tuple(f"layer.{name}" for name in layer.recurrent_weights)
        self.input_dropout, self.recurrent_dropout = input_dropout, recurrent_dropout

    def initial_carry(self, batch_size: int, like: Tensor) -> tuple[C, Tensor, Tensor]:
        recurrent_size = self.layer.recurrent_size if isinstance(self.layer, Masked) else 0
        seen, kept = like.new_ones(batch_size, self.input_size), like.new_ones(batch_size, recurrent_size)
        return self.layer.initial_carry(batch_size, like), *self._draw(seen, kept)

    def renew(self, carry: tuple[C, Tensor, Tensor]) -> tuple[C, Tensor, Tensor]:
        inner, seen, kept = carry
        return self.layer.renew(inner), *self._draw(seen, kept)

    def map_state(
        self, function: Callable[[Tensor], Tensor], carry: tuple[C, Tensor, Tensor]
    ) -> tuple[C, Tensor, Tensor]:
        inner, seen, kept = carry
        return self.layer.map_state(function, inner), seen, kept

    def _draw(self, seen: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Fresh masks where there is anything to drop, else those given."""
        if not self.training:
            return seen, kept
        return (
            drop_mask(seen, self.input_dropout) if self.input_dropout else seen,
            drop_mask(kept, self.recurrent_dropout) if self.recurrent_dropout else kept,
        )

    def step(self, carry: tuple[C, Tensor, Tensor], x: Tensor) -> tuple[tuple[C, Tensor, Tensor], Tensor]:
        inner, seen, kept = carry
        if isinstance(self.layer, Masked):
            inner, y = self.layer.step(inner, x * seen.detach(), kept.detach())
        else:
            inner, y = self.layer.step(inner, x * seen.detach())
        return (inner, seen, kept), y

    def unroll(
        self, x: Tensor, lengths: Tensor | None, carry: tuple[C, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[C, Tensor, Tensor]]:
        inner, seen, kept = carry
        x = x * seen.detach()[:, None]
        # A mask of ones leaves the fused kernel to the layers that have one.
        if isinstance(self.layer, Masked) and bool((kept != 1).any()):
            y, inner = self.layer.unroll(x, lengths, inner, kept.detach())
        else:
            y, inner = self.layer.unroll(x, lengths, inner)
        return y, (inner, seen, kept)


class WeightDropout(Recurrent[C]):
    """A layer that drops entries of its recurrent weights in training (DropConnect, Wan et al. 2013).

    What is kept is scaled by 1 / (1 - dropout). One mask serves all rows and all steps of a pass and is drawn anew when
    rows start or are renewed (Merity et al. 2018, section 2), so the layer's own kernel runs. Parameters are called as
    the layer calls them, behind ``layer.``, and hold the whole weights, so that they load with and without dropout.

    Args:
        layer: what is run.
        dropout: probability that an entry of a recurrent weight is dropped.

    Raises:
        ValueError: if the layer has no recurrent weights.
    """

    def __init__(self, layer: Recurrent[C], *, dropout: Probability = 0.5) -> None:
        super().__init__()
        if not layer.recurrent_weights:
            name = type(layer).__name__
            if isinstance(layer, Stack | WeightDropout):
                raise ValueError(
                    f"{name}: weight_dropout is for one layer; weight_dropout around each layer inside fits"
                )
            raise ValueError(f"{name} has no recurrent weights for weight_dropout to drop; a layer that has, such as "
                             "lstm, fits")  # fmt: skip
        self.layer = layer
        self.input_size, self.output_size = layer.input_size, layer.output_size
        self.dropout = dropout
        self._masks: dict[str, Tensor] = {}

    def initial_carry(self, batch_size: int, like: Tensor) -> C:
        if like.device.type != "meta":
            self._draw()
        return self.layer.initial_carry(batch_size, like)

    def renew(self, carry: C) -> C:
        self._draw()
        return self.layer.renew(carry)

    def map_state(self, function: Callable[[Tensor], Tensor], carry: C) -> C:
        return self.layer.map_state(function, carry)

    def _draw(self) -> None:
        # A mask has the shape of a weight and no row, so it cannot stand in the carry, whose leaves are rows.
        if self.training and self.dropout:
            names = self.layer.recurrent_weights
            self._masks = {name: drop_mask(self.layer.get_parameter(name), self.dropout) for name in names}

    def step(self, carry: C, x: Tensor) -> tuple[C, Tensor]:
        if not self.training:
            return self.layer.step(carry, x)
        y, carry = self.unroll(x[:, None], None, carry)
        return carry, y[:, 0]

    def unroll(self, x: Tensor, lengths: Tensor | None, carry: C) -> tuple[Tensor, C]:
        if not self.training:
            return self.layer.unroll(x, lengths, carry)
        if not self._masks:
            self._draw()
        weights = {name: self.layer.get_parameter(name) * mask for name, mask in self._masks.items()}
        return cast(tuple[Tensor, C], functional_call(self.layer, weights, (x, lengths, carry)))


@RECURRENT.register("variational")
def build_variational(
    input_size: int,
    *,
    layer: Annotated[Spec, RECURRENT],
    input_dropout: Probability = 0.0,
    recurrent_dropout: Probability = 0.0,
) -> Variational[Any]:
    """A layer with dropout that keeps one mask for a whole row (Gal & Ghahramani 2016).

    Args:
        layer: what is run.
        input_dropout: probability that a unit of the input is dropped.
        recurrent_dropout: probability that a unit of the recurrent signal is dropped on its way back into the layer.
    """
    inner = RECURRENT.build(layer, input_size=input_size)
    return Variational(inner, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout)


@RECURRENT.register("weight_dropout")
def build_weight_dropout(
    input_size: int, *, layer: Annotated[Spec, RECURRENT], dropout: Probability = 0.5
) -> WeightDropout[Any]:
    """A layer that drops entries of its recurrent weights (Wan et al. 2013; Merity et al. 2018).

    Args:
        layer: what is run.
        dropout: probability that an entry of a recurrent weight is dropped.
    """
    return WeightDropout(RECURRENT.build(layer, input_size=input_size), dropout=dropout)


@ENCODERS.register("birnn")
def build_birnn(
    input_size: int,
    *,
    layer: Annotated[Spec, RECURRENT],
    back: Annotated[Spec, RECURRENT] | None = None,
    merge: Literal["concat", "sum", "mean"] = "concat",
) -> Bidirectional:
    """One recurrent layer read forwards and another backwards (Schuster & Paliwal 1997).

    Args:
        layer: the layer that reads forwards, and backwards too unless `back` is given.
        back: another layer for reading backwards.
        merge: how the two outputs of a position become one.
    """
    ahead = RECURRENT.build(layer, input_size=input_size)
    return Bidirectional(ahead, RECURRENT.build(back or layer, input_size=input_size), merge=merge)


def _build_layers(registry: Registry[Any], specs: Sequence[Spec], input_size: int) -> list[Any]:
    layers: list[Any] = []
    for spec in specs:
        layers.append(registry.build(spec, input_size=layers[-1].output_size if layers else input_size))
    return layers


@RECURRENT.register("stack")
def build_stack(
    input_size: int,
    *,
    layers: list[Annotated[Spec, RECURRENT]],
    dropout: Probability = 0.0,
    residual: bool = False,
    skip_to_output: bool = False,
) -> Stack:
    """Recurrent layers on top of each other.

    Args:
        layers: the layers, from the input upwards.
        dropout: share of activations dropped between layers in training.
        residual: add a layer's input to its output wherever the sizes are equal.
        skip_to_output: give the outputs of all layers side by side instead of the last one's (Graves 2013).
    """
    return Stack(
        _build_layers(RECURRENT, layers, input_size), dropout=dropout, residual=residual, skip_to_output=skip_to_output
    )


@ENCODERS.register("stack")
def build_encoder_stack(
    input_size: int,
    *,
    layers: list[Annotated[Spec, ENCODERS]],
    dropout: Probability = 0.0,
    residual: bool = False,
    skip_to_output: bool = False,
) -> Encoder:
    """Layers on top of each other, any of which may read both ways.

    Args:
        layers: the layers, from the input upwards.
        dropout: share of activations dropped between layers in training.
        residual: add a layer's input to its output wherever the sizes are equal.
        skip_to_output: give the outputs of all layers side by side instead of the last one's (Graves 2013).
    """
    built = _build_layers(ENCODERS, layers, input_size)
    if all(isinstance(layer, Recurrent) for layer in built):
        return Stack(built, dropout=dropout, residual=residual, skip_to_output=skip_to_output)
    return EncoderStack(built, dropout=dropout, residual=residual, skip_to_output=skip_to_output)

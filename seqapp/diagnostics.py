"""What happens to a gradient, a gate and a single tap over time: numbers that a person then looks at as pictures.

B batch, T time, I inputs, O outputs, H hidden, S all values of a carry, N probes. Distances d = T - k count steps
backwards from the last one. Everything here is plain torch; pictures and records are made in ``pipelines``.

Sources: Bengio et al. 1994 and Pascanu et al. 2013 (vanishing and exploding gradients, clipping), Saxe et al. 2014
(orthogonal starts), Karpathy et al. 2015 (gate saturation).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from seqapp.nn.cells import NARX, Jordan, StateSpace
from seqapp.nn.recurrent import Carry, Recurrent, Variational, WeightDropout, map_carry, select

EXACT_UP_TO = 512
"""Values of a carry up to which step Jacobians are formed; beyond, probes are pulled back instead."""
LARGEST_BLOCK = 2048
"""Rows of a recurrent matrix up to which its eigenvalues are worth the seconds they take."""
LEFT, RIGHT = 0.1, 0.9
"""A gate below LEFT is left-saturated (shut), above RIGHT right-saturated (open): Karpathy et al. 2015, section 4.3."""

L = TypeVar("L", bound=nn.Module)

# Where a carry is cut into chunks of time, so that Jacobians (B, S, S) of all steps need not fit in memory at once.
_JACOBIAN_VALUES = 2**24


# gradient flow


@dataclass(frozen=True)
class GradientFlow:
    """How large dh_T/dh_k and dy_T/dx_k are, row by row.

    Attributes:
        state: (B, T) log10 of the spectral norm of dh_T/dh_{T-d}, d = 0..T-1; -inf where it is exactly zero. h is the
            whole carry, all its floating leaves flattened; leaves that a step hands on as they are, such as the masks
            of `variational`, are no state and are left out.
        output: (B, T) the same of dy_T/dx_{T-d}.
        state_size: S.
        exact: whether the norms are exact; otherwise they are lower bounds, from ``probes`` directions pulled back.
        probes: N, or 0 if exact.
    """

    state: Tensor
    output: Tensor
    state_size: int
    exact: bool
    probes: int


def gradient_flow(
    layer: Recurrent[Any], x: Tensor, carry: Carry | None = None, *, exact_up_to: int = EXACT_UP_TO, probes: int = 16
) -> GradientFlow:
    """The norms of dh_T/dh_k and dy_T/dx_k for every k, on rows without padding.

    dh_T/dh_k is the product of step Jacobians J_T ... J_{k+1} (Pascanu et al. 2013, equation 5), and
    dy_T/dx_k = (dy_T/dh_{T-1}) J_{T-1} ... J_{k+1} (dh_k/dx_k). In float64, every product is rescaled as it goes, so
    that 1e-900 is still told from zero.

    Args:
        layer: any causal layer; it is copied, and dropout is off in the copy.
        x: (B, T, I).
        carry: where to go on from; None starts afresh.
        exact_up_to: a carry with more values than this is probed: ``probes`` random orthonormal directions are pulled
            back, and the largest singular value of what arrives bounds the norm from below.
        probes: N, how many.

    Raises:
        ValueError: if a state is no longer a finite number, naming the step.
    """
    layer = _frozen(layer)
    x = x.detach().double()
    before = _carries(layer, x, carry)
    size = sum(leaf[0].numel() for leaf in _state(before[0], _moving(layer, before[0], x[:, 0])))
    exact = size <= exact_up_to
    walk = _products if exact else _probes
    state, output = walk(layer, before, x, size, probes)
    return GradientFlow(state, output, size, exact, 0 if exact else probes)


def step_jacobians(layer: Recurrent[Any], carry: Carry, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four Jacobians of one step, for each row: carry, x (B, I) -> carry', y.

    Rows never see each other (the padding law), so one backward pass from the sum over rows of one value of
    (carry', y) is that value's gradient in every row at once.

    Returns:
        dcarry'/dcarry (B, S, S), dcarry'/dx (B, S, I), dy/dcarry (B, O, S), dy/dx (B, O, I).
    """
    rows = len(x)
    with torch.enable_grad():
        moving = _moving(layer, carry, x)
        carry = map_carry(_watched, carry)
        x = _watched(x)
        sources = [*_state(carry, moving), x]
        new, y = layer.step(carry, x)
        values = torch.cat([*(leaf.flatten(1) for leaf in _state(new, moving)), y], 1)
        size = values.shape[1] - y.shape[1]
        gradients = []
        for index in range(values.shape[1]):
            if values.requires_grad:
                found = torch.autograd.grad(values[:, index].sum(), sources, retain_graph=True, allow_unused=True,
                                            materialize_grads=True)  # fmt: skip
            else:
                found = tuple(torch.zeros_like(source) for source in sources)
            gradients.append(torch.cat([part.reshape(rows, -1) for part in found], 1))
    whole = torch.stack(gradients, 1)
    return whole[:, :size, :size], whole[:, :size, size:], whole[:, size:, :size], whole[:, size:, size:]


def row_quantiles(log_norms: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Curves (T,) of the row at each share of the ranks, distance by distance: (B, T); the nearest rank, since a
    norm of exactly zero has no logarithm to average with."""
    ordered = log_norms.sort(0).values
    return [ordered[round(share * (len(ordered) - 1))] for share in shares]


def fitted_rate(log_norms: Tensor) -> float:
    """The factor per step of a curve (T,) of log10 norms: 10 to the slope of its least-squares line.

    Where the curve is exactly zero it has no logarithm and is left out; 0 if nothing but its first point is left.
    """
    distances = torch.arange(len(log_norms), dtype=torch.float64)
    kept = log_norms.isfinite()
    if int(kept.sum()) < 2:
        return 0.0
    d, v = distances[kept], log_norms[kept].double()
    slope = ((d - d.mean()) * (v - v.mean())).sum() / ((d - d.mean()) ** 2).sum()
    return float(10.0 ** float(slope))


def first_beyond(log_norms: Tensor, *, below: float = -math.inf, above: float = math.inf) -> int | None:
    """The first distance at which a curve (T,) of log10 norms is under ``below`` or over ``above``; None if none is."""
    found = ((log_norms < below) | (log_norms > above)).nonzero()
    return int(found[0]) if len(found) else None


def largest_singular_value(matrix: Tensor) -> Tensor:
    """The spectral norm of each matrix (..., M, N) -> (...)."""
    if 0 in matrix.shape[-2:]:
        return matrix.new_zeros(matrix.shape[:-2])
    # The Gram matrix of the smaller side is several times cheaper than a singular value decomposition, and the
    # largest value loses nothing by the squaring; scaled, since squares of small numbers vanish first.
    scale = matrix.abs().amax((-2, -1), keepdim=True)
    scaled = matrix / scale.where(scale > 0, torch.ones_like(scale))
    gram = scaled @ scaled.mT if matrix.shape[-2] <= matrix.shape[-1] else scaled.mT @ scaled
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values[..., -1].clamp(min=0).sqrt() * scale[..., 0, 0]


def spectral_radius(matrix: Tensor) -> Tensor:
    """The largest |eigenvalue| of each square matrix (..., N, N) -> (...)."""
    values: Tensor = torch.linalg.eigvals(matrix)
    return values.abs().amax(-1)


class _Product:
    """A product of matrices (B, M, N), kept near 1 with the power of ten beside it."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.log = matrix, matrix.new_zeros(len(matrix))
        self.rescale(matrix)

    def rescale(self, matrix: Tensor) -> None:
        largest = matrix.abs().flatten(1).amax(1) if matrix[0].numel() else matrix.new_zeros(len(matrix))
        largest = largest.where(largest > 0, torch.ones_like(largest))
        self.matrix, self.log = matrix / largest[:, None, None], self.log + largest.log10()

    def log_norm(self, right: Tensor | None = None) -> Tensor:
        """(B,) log10 of the spectral norm of the product, or of the product times ``right``."""
        matrix = self.matrix if right is None else self.matrix @ right
        return largest_singular_value(matrix).log10() + self.log


def _products(layer: Recurrent[Any], before: Sequence[Carry], x: Tensor, size: int, _: int) -> tuple[Tensor, Tensor]:
    rows, steps = x.shape[:2]
    chunk = max(1, _JACOBIAN_VALUES // max(1, rows * (size + layer.output_size) * (size + x.shape[2])))
    state = _Product(torch.eye(size, dtype=x.dtype).expand(rows, size, size))
    output: _Product | None = None
    state_norms, output_norms = [state.log_norm()], []
    for end in range(steps, 0, -chunk):
        start = max(0, end - chunk)
        together = map_carry(lambda *leaves: torch.cat(leaves), *before[start:end])
        found = step_jacobians(layer, together, x[:, start:end].transpose(0, 1).flatten(0, 1))
        a, b, c, d = (part.view(end - start, rows, *part.shape[1:]) for part in found)
        for t in reversed(range(end - start)):
            if output is None:
                output = _Product(c[t])
                output_norms.append(largest_singular_value(d[t]).log10())
            else:
                output_norms.append(output.log_norm(b[t]))
                output.rescale(output.matrix @ a[t])
            state.rescale(state.matrix @ a[t])
            state_norms.append(state.log_norm())
    return torch.stack(state_norms[:steps], 1), torch.stack(output_norms, 1)


def _probes(layer: Recurrent[Any], before: Sequence[Carry], x: Tensor, size: int, probes: int) -> tuple[Tensor, Tensor]:
    rows, steps = x.shape[:2]
    moving = _moving(layer, before[0], x[:, 0])

    def start(width: int) -> Tensor:
        directions: Tensor = torch.linalg.qr(torch.randn(rows, width, min(probes, width), dtype=x.dtype))[0]
        return directions.mT

    def pull_back(t: int, v_carry: Tensor | None, v_y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of directions at (carry', y) of step t -> the same at (carry, x): (B, N, S), (B, N, I)."""
        directions = v_carry if v_carry is not None else v_y
        assert directions is not None
        count = directions.shape[1]
        with torch.enable_grad():
            carry = map_carry(lambda leaf: _watched(leaf.repeat_interleave(count, 0)), before[t])
            x_t = _watched(x[:, t].repeat_interleave(count, 0))
            sources = [*_state(carry, moving), x_t]
            new, y = layer.step(carry, x_t)
            value = torch.zeros((), dtype=x.dtype)
            if v_carry is not None:
                flat = torch.cat([leaf.flatten(1) for leaf in _state(new, moving)], 1)
                value = value + (flat * v_carry.flatten(0, 1)).sum()
            if v_y is not None:
                value = value + (y * v_y.flatten(0, 1)).sum()
            if value.requires_grad:
                found = torch.autograd.grad(value, sources, allow_unused=True, materialize_grads=True)
            else:
                found = tuple(torch.zeros_like(source) for source in sources)
        whole = torch.cat([part.reshape(rows, count, -1) for part in found], -1)
        return whole[..., :size], whole[..., size:]

    state = _Product(start(size))
    at_carry, at_x = pull_back(steps - 1, None, start(layer.output_size))
    output = _Product(at_carry)
    state_norms, output_norms = [state.log_norm()], [largest_singular_value(at_x).log10()]
    for t in reversed(range(1, steps)):
        state.rescale(pull_back(t, state.matrix, None)[0])
        state_norms.append(state.log_norm())
        at_carry, at_x = pull_back(t - 1, output.matrix, None)
        output_norms.append(largest_singular_value(at_x).log10() + output.log)
        output.rescale(at_carry)
    return torch.stack(state_norms, 1), torch.stack(output_norms, 1)


def _frozen(layer: L) -> L:
    return copy.deepcopy(layer).double().eval().requires_grad_(False)


def _carries(layer: Recurrent[Any], x: Tensor, carry: Carry | None) -> list[Carry]:
    """The carry before each step."""
    current = layer.initial_carry(len(x), x) if carry is None else map_carry(_double, carry)
    before = []
    with torch.no_grad():
        for t in range(x.shape[1]):
            before.append(current)
            current, _ = layer.step(current, x[:, t])
            if not all(bool(leaf.isfinite().all()) for leaf in _leaves(current)):
                raise ValueError(
                    f"the state of {type(layer).__name__} is not finite after step {t + 1}; fewer steps fit"
                )
    return before


def _double(leaf: Tensor) -> Tensor:
    return leaf.detach().double() if leaf.is_floating_point() else leaf


def _watched(leaf: Tensor) -> Tensor:
    return leaf.detach().requires_grad_() if leaf.is_floating_point() else leaf


def _leaves(carry: Carry) -> list[Tensor]:
    """The leaves of a carry, in the order of :func:`map_carry`."""
    leaves: list[Tensor] = []

    def note(leaf: Tensor) -> Tensor:
        leaves.append(leaf)
        return leaf

    map_carry(note, carry)
    return leaves


def _moving(layer: Recurrent[Any], carry: Carry, x: Tensor) -> list[bool]:
    """Which leaves of the carry are state: numbers that a step computes anew."""
    with torch.no_grad():
        new, _ = layer.step(carry, x)
    return [
        leaf.is_floating_point() and after is not leaf for leaf, after in zip(_leaves(carry), _leaves(new), strict=True)
    ]


def _state(carry: Carry, moving: Sequence[bool]) -> list[Tensor]:
    return [leaf for leaf, moves in zip(_leaves(carry), moving, strict=True) if moves]


# clipping


@dataclass(frozen=True)
class Clipping:
    """The gradient of all parameters of a layer, for one sequence length, before and after clipping.

    Attributes:
        length: T.
        norm: before.
        by_norm: after ``g <- g * threshold / |g|`` where |g| is above the threshold.
        by_value: after every value is cut to [-limit, limit].
        cosine: of the angle that clipping by value turns the gradient; by norm never turns it.
    """

    length: int
    norm: float
    by_norm: float
    by_value: float
    cosine: float


def clipped_gradients(
    layer: Recurrent[Any], x: Tensor, lengths: Sequence[int], *, threshold: float = 1.0, limit: float = 0.1
) -> list[Clipping]:
    """What clipping does to the gradient of the layer's own parameters (Pascanu et al. 2013, section 3.2).

    Clipping leaves every Jacobian as it is: it shortens the gradient that they make. The loss is one fixed random
    direction of the last output, u y_T with |u| = 1, averaged over rows, so that nothing but the layer decides.

    Args:
        layer: any causal layer; it is copied, and dropout is off in the copy.
        x: (B, T, I); each row's first steps are read.
        lengths: how many steps to read, each at most T.
        threshold: largest norm.
        limit: largest absolute value.
    """
    layer = _frozen(layer)
    parameters = list(layer.requires_grad_().parameters())
    u = torch.nn.functional.normalize(torch.randn(layer.output_size, dtype=torch.float64), dim=0)
    found = []
    for length in lengths:
        with torch.enable_grad():
            y, _ = layer(x[:, :length].detach().double())
            loss = (y[:, -1] @ u).mean()
            parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts])
        norm = float(gradient.norm())
        cut = gradient.clamp(-limit, limit)
        cosine = float(torch.nn.functional.cosine_similarity(gradient, cut, dim=0)) if norm else 1.0
        found.append(Clipping(length, norm, min(norm, threshold), float(cut.norm()), cosine))
    return found


# recurrent matrices


def recurrent_blocks(model: nn.Module) -> dict[str, Tensor]:
    """The square matrices that lead from one step to the next, by ``<layer>.<gate>``, or ``<layer>`` if there is one.

    A layer's ``W`` (gates * H, H) is cut into its gates, named by the class's ``gate_names`` or numbered from 0.
    Where the way back leads through more than W, the block is the whole loop, every activation taken as the identity:

    - `jordan`: U W (O, O), and `jordan_memory`: a I + U W;
    - `state_space`: U_D ... U_2 W (H, H);
    - `narx`: the companion matrix (qO, qO) of y_t = U ... (W_1 y_{t-1} + ... + W_q y_{t-q}), whose eigenvalues are
      those of the delay line as a whole.

    Layers without such a matrix (`tdnn`, `mingru`, `minlstm`) have no block.
    """
    blocks: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, layer in recurrent_layers(model).items():
            for gate, block in _blocks_of(layer).items():
                blocks[f"{name}.{gate}" if gate else name] = block
    return blocks


def _blocks_of(layer: Recurrent[Any]) -> dict[str, Tensor]:
    W = getattr(layer, "W", None)
    if not isinstance(W, Tensor) or W.dim() != 2:
        return {}
    W = W.detach()
    if isinstance(layer, Jordan):
        loop = layer.output.weight.detach() @ W
        return {"": loop + layer.decay * torch.eye(len(loop), dtype=W.dtype, device=W.device)}
    if isinstance(layer, StateSpace | NARX):
        for above in layer.above:
            W = above.get_parameter("weight").detach() @ W
        if isinstance(layer, StateSpace):
            return {"": W}
        line = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)[: -layer.output_size]
        return {"": torch.cat([layer.output.weight.detach() @ W, line])}
    rows, columns = W.shape
    if columns == 0 or rows % columns:
        return {}
    gates = rows // columns
    names: tuple[str, ...] = tuple(getattr(layer, "gate_names", ()))
    if len(names) != gates:
        names = tuple(map(str, range(gates))) if gates > 1 else ("",)
    return dict(zip(names, W.chunk(gates), strict=True))


# gates


@dataclass(frozen=True)
class Saturation:
    """How often each unit of one gate is shut or open.

    Attributes:
        left: (H,) share of positions at which the gate is below 0.1.
        right: (H,) share of positions at which it is above 0.9.
        mean: (H,) of the gate over positions.
    """

    left: Tensor
    right: Tensor
    mean: Tensor


def gate_saturation(
    layer: Recurrent[Any], x: Tensor, lengths: Tensor | None = None, carry: Carry | None = None
) -> dict[str, Saturation]:
    """Each sigmoid gate's saturation over all valid positions, by gate (Karpathy et al. 2015, section 4.3).

    Args:
        layer: one with a method ``gates(carry, x) -> {name: (B, H)}``; another gives nothing.
        x: (B, T, I).
        lengths: (B,) valid positions per row; None when all are.
        carry: where to go on from; None starts afresh.
    """
    if isinstance(layer, Variational):
        # Its masks are ones outside training, so the layer inside reads the very x.
        return gate_saturation(layer.layer, x, lengths, None if carry is None else carry[0])
    if isinstance(layer, WeightDropout):
        return gate_saturation(layer.layer, x, lengths, carry)
    gates: Callable[[Carry, Tensor], dict[str, Tensor]] | None = getattr(layer, "gates", None)
    if not callable(gates):
        return {}
    lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        current = layer.initial_carry(len(x), x) if carry is None else carry
        for t in range(int(lengths.max())):
            live = t < lengths
            for name, gate in gates(current, x[:, t]).items():
                left[name] = left.get(name, 0) + (gate[live] < LEFT).double().sum(0)
                right[name] = right.get(name, 0) + (gate[live] > RIGHT).double().sum(0)
                sums[name] = sums.get(name, 0) + gate[live].double().sum(0)
            current = select(live, layer.step(current, x[:, t])[0], current)
    total = int(lengths.sum())
    return {name: Saturation(left[name] / total, right[name] / total, sums[name] / total) for name in left}


# where the layers of a model are, and what they read


@dataclass(frozen=True)
class Reading:
    """What one layer of a model was given in one call.

    Attributes:
        layer: the layer.
        x: (B, T, I), in the layer's own order of reading: a backward direction has its rows reversed.
        lengths: (B,) or None.
        carry: where it went on from, or None.
    """

    layer: Recurrent[Any]
    x: Tensor
    lengths: Tensor | None
    carry: Carry | None


def recurrent_layers(model: nn.Module) -> dict[str, Recurrent[Any]]:
    """Every causal layer by its name in the model, stacks and what they are made of alike."""
    return {
        name or type(layer).__name__.lower(): layer
        for name, layer in model.named_modules()
        if isinstance(layer, Recurrent)
    }


def outermost(names: Sequence[str]) -> list[str]:
    """The names that lie inside no other: a stack without its layers, each direction of a bidirectional layer."""
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def record(model: nn.Module, call: Callable[[], object]) -> dict[str, Reading]:
    """What every causal layer of ``model`` reads during ``call``, of its longest pass if there are several.

    A layer that is only stepped, as in a decoder that reads its own words, is not there.
    """
    found: dict[str, Reading] = {}

    def watch(name: str) -> Callable[..., None]:
        def note(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = {**dict(zip(("x", "lengths", "carry"), arguments, strict=False)), **keywords}
            x, lengths, carry = given["x"].detach(), given.get("lengths"), given.get("carry")
            if name not in found or x.shape[1] > found[name].x.shape[1]:
                carry = None if carry is None else map_carry(torch.Tensor.detach, carry)
                found[name] = Reading(layer, x, lengths, carry)

        return note

    handles = [layer.register_forward_pre_hook(watch(name), with_kwargs=True)
               for name, layer in recurrent_layers(model).items()]  # fmt: skip
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            call()
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


# one tap

TapActivation = Literal["sigmoid", "tanh", "relu", "identity"]
Signal = Literal["impulse", "constant"]
TAP_ACTIVATIONS: tuple[TapActivation, ...] = get_args(TapActivation)
SIGNALS: tuple[Signal, ...] = get_args(Signal)

_TAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x,
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What becomes of h_t in the end.

    Attributes:
        kind: "fades" to 0, "settles" at another value, "oscillates" between two, "grows linearly" or
            "grows exponentially".
        bounded: whether |h_t| stays below some bound for ever.
        rate: the factor per step, in the end, of |h_t| where it fades or grows exponentially, and of its distance
            from the limit where it settles; 1 where that changes more slowly than any power.
        limit: what it settles at; None where it does not.
    """

    kind: Literal["fades", "settles", "oscillates", "grows linearly", "grows exponentially"]
    bounded: bool
    rate: float
    limit: float | None


def one_tap(activation: TapActivation, weights: Tensor, steps: int, signal: Signal) -> Tensor:
    """h_1..h_T of h_t = f(w h_{t-1} + x_t), h_0 = 0, for each weight (N,) -> (N, T), in float64.

    Args:
        activation: f.
        weights: w.
        steps: T.
        signal: "impulse" is x_1 = 1 and 0 from then on; "constant" is x_t = 1.
    """
    weights = weights.double()
    h = torch.zeros_like(weights)
    found = []
    for t in range(steps):
        h = _TAPS[activation](weights * h + (1.0 if t == 0 or signal == "constant" else 0.0))
        found.append(h)
    return torch.stack(found, 1)


def one_tap_verdict(activation: TapActivation, w: float, signal: Signal) -> Verdict:
    """The end of :func:`one_tap`, by analysis and not by simulation.

    Without a bound on f (identity, relu) everything turns on |w|: below 1 the response fades or settles, at 1 an
    impulse is kept for ever and a constant adds up, above 1 it grows as |w|^t. relu answers a negative w h with 0, so
    there a negative w never grows. A bounded f is bounded for every w; where |w f'| < 1 at its fixed point it settles
    there, and where it is not, a negative w swings between two values and a positive w above 1 keeps the impulse for
    ever as one of two stable states (tanh; "latching", Bengio et al. 1994).
    """
    if activation == "identity" or activation == "relu":
        return _unbounded_verdict(activation, w, signal)
    return _bounded_verdict(activation, w, signal)


def one_tap_regions(
    activation: TapActivation, weights: Sequence[float], signal: Signal
) -> list[tuple[float, float, Verdict]]:
    """Neighbouring weights with the same kind of verdict: (first weight, last weight, the verdict in their middle)."""
    kinds = [one_tap_verdict(activation, w, signal).kind for w in weights]
    regions = []
    start = 0
    for index in range(1, len(weights) + 1):
        if index == len(weights) or kinds[index] != kinds[start]:
            middle = one_tap_verdict(activation, weights[(start + index - 1) // 2], signal)
            regions.append((weights[start], weights[index - 1], middle))
            start = index
    return regions


def _unbounded_verdict(activation: str, w: float, signal: Signal) -> Verdict:
    if activation == "relu" and w <= 0 and signal == "impulse":
        return Verdict("fades", True, 0.0, 0.0)
    if activation == "relu" and w <= -1:
        return Verdict("oscillates", True, 1.0, None)
    if abs(w) < 1:
        limit = 0.0 if signal == "impulse" else 1 / (1 - w)
        return Verdict("settles" if limit else "fades", True, abs(w), limit)
    if w == -1:
        return Verdict("oscillates", True, 1.0, None)
    if w == 1:
        return Verdict("settles", True, 0.0, 1.0) if signal == "impulse" else Verdict("grows linearly", False, 1, None)
    return Verdict("grows exponentially", False, abs(w), None)


def _bounded_verdict(activation: str, w: float, signal: Signal) -> Verdict:
    c = 1.0 if signal == "constant" else 0.0
    f = math.tanh if activation == "tanh" else _sigmoid
    if activation == "tanh" and not c and abs(w) <= 1:
        return Verdict("fades", True, abs(w), 0.0)
    # The fixed point that h reaches: the only one for w <= 0; for w > 0 the map rises and h starts above 0, so the
    # only positive one (for sigmoid as long as w < 4).
    low, high = (1e-9 if w > 0 else -1.0), 1.0
    if activation == "tanh" and not c and w < -1:
        return Verdict("oscillates", True, 1.0, None)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < f(w * middle + c) else (low, middle)
    h = (low + high) / 2
    slope = abs(w) * (1 - h * h if activation == "tanh" else h * (1 - h))
    if w < 0 and slope > 1:
        return Verdict("oscillates", True, 1.0, None)
    return Verdict("settles", True, slope, h)


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a >= 0 else math.exp(a) / (1 + math.exp(a))

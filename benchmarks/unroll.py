"""Time every network's fast path beside its readable one, on the same weights, in alternating turns.

python benchmarks/unroll.py [KIND]... [--turns 9]

readable: `scan`, the law, step by step over `x.unbind(1)`.
indexed:  the same loop as it is usually written, over `x[:, t]`, whose backward pass fills a tensor of the size of x
          for every step.
fast:     what `forward` runs.
peer:     torch.nn.RNN, GRU or LSTM on the same weights, where there is one.
product:  one square matrix product of as many floating-point operations, by torch.mm or oneDNN, whichever is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seqapp.nn import cells, kernels  # noqa: F401  (cells registers the networks by name)
from seqapp.nn.recurrent import RECURRENT, Recurrent, scan

SHAPES = [(64, 50, 256), (1, 50, 256), (64, 500, 128)]
WRAPPERS = {"stack", "variational"}
FUSED = {"lstm"}
"""Kinds whose whole loop is one kernel of the library."""

Path = Callable[[Tensor], Tensor]


def paths(layer: Recurrent[Any], peer: nn.Module | None) -> dict[str, Path]:
    """Ways to run ``layer``, and its peer, over x (B, T, I)."""

    def readable(x: Tensor) -> Tensor:
        return scan(layer.step, layer.initial_carry(len(x), x), x)[0]

    def indexed(x: Tensor) -> Tensor:
        carry, outputs = layer.initial_carry(len(x), x), []
        for t in range(x.shape[1]):
            carry, y = layer.step(carry, x[:, t])
            outputs.append(y)
        return torch.stack(outputs, 1)

    found: dict[str, Path] = {"readable": readable, "indexed": indexed, "fast": lambda x: layer(x)[0]}
    if peer is not None:
        found["peer"] = lambda x: peer(x)[0]
    return found


def peer_of(layer: Recurrent[Any], kind: str) -> nn.Module | None:
    """The library's own layer with the weights of ``layer``."""
    classes = {"elman": nn.RNN, "gru_reset_after": nn.GRU, "lstm": nn.LSTM}
    if kind not in classes:
        return None
    weights = dict(layer.named_parameters())
    V, W, b = weights["V"], weights["W"], weights.get("b", weights.get("b_h"))
    peer = classes[kind](V.shape[1], W.shape[1], batch_first=True)
    with torch.no_grad():
        peer.weight_ih_l0.copy_(V)
        peer.weight_hh_l0.copy_(W)
        peer.bias_ih_l0.copy_(b)
        peer.bias_hh_l0.zero_()
        if "b_inner" in weights:
            peer.bias_hh_l0[-len(weights["b_inner"]) :] = weights["b_inner"]
    return peer


def operations(layer: Recurrent[Any], x: Tensor, *, backward: bool) -> float:
    """Floating-point operations in matrix products of one run over x, counted on the readable path."""

    def count(steps: int) -> int:
        part = x[:, :steps].detach().requires_grad_(backward)
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(backward):
            y, _ = scan(layer.step, layer.initial_carry(len(part), part), part)
            if backward:
                y.sum().backward()  # type: ignore[no-untyped-call]
        return int(counter.get_total_flops())

    # The first step has no gradient to pass on, so a step's cost is the difference of two lengths.
    return count(3) + (x.shape[1] - 3) * float(count(4) - count(3))


def turn(path: Path, layer: nn.Module, x: Tensor, *, backward: bool) -> float:
    """Seconds of one run."""
    layer.zero_grad()
    x.grad = None
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        y = path(x)
        if backward:
            y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


def products_of(operations: float) -> dict[str, Callable[[], Tensor]]:
    """One square product of so many operations, through either library that PyTorch has for it."""
    size = max(1, round((operations / 2) ** (1 / 3)))
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return {"mm": lambda: torch.mm(a, b, out=out), "onednn": lambda: kernels.product(a, b)}


def measure(kind: str, shape: tuple[int, int, int], turns: int, slow_turns: int) -> dict[str, Any]:
    """Median seconds of every path, and the largest difference between any of them and the readable one."""
    B, T, H = shape
    torch.manual_seed(0)
    layer = RECURRENT.build({"kind": kind, "hidden_size": H}, input_size=H)
    peer = peer_of(layer, kind)
    found = paths(layer, peer)
    x = torch.randn(B, T, H, requires_grad=True)
    with torch.no_grad():
        truth = found["readable"](x)
        difference = max(float((path(x) - truth).abs().max()) for path in found.values())
    result: dict[str, Any] = {"kind": kind, "shape": list(shape), "difference": difference}
    for name, backward in (("forward", False), ("forward_backward", True)):
        flops = operations(layer, x, backward=backward)
        products = products_of(flops)
        times: dict[str, list[float]] = {path: [] for path in [*found, *products]}
        for index in range(-1, turns):
            for path, run in found.items():
                if path == "indexed" and index >= slow_turns:
                    continue
                module = peer if path == "peer" and peer is not None else layer
                seconds = turn(run, module, x, backward=backward)
                if index >= 0:
                    times[path].append(seconds)
            for name_of, product in products.items():
                started = time.perf_counter()
                product()
                if index >= 0:
                    times[name_of].append(time.perf_counter() - started)
        medians = {path: statistics.median(values) for path, values in times.items()}
        result[name] = {
            "seconds": medians,
            "lowest": {path: min(values) for path, values in times.items()},
            "operations": flops,
            "gflops": flops / medians["fast"] / 1e9,
            "fast_to_readable": medians["readable"] / medians["fast"],
            "fast_to_indexed": medians["indexed"] / medians["fast"],
            "fast_to_product": medians["fast"] / min(medians[product] for product in products),
        }
        if "peer" in medians:
            result[name]["fast_to_peer"] = medians["peer"] / medians["fast"]
    return result


def table(shape: tuple[int, int, int], results: list[dict[str, Any]]) -> Table:
    """One shape's networks: forward, then forward + backward."""
    drawn = Table(title="batch {}, time {}, hidden {}".format(*shape), title_justify="left")
    drawn.add_column("network")
    for part in ("fwd", "fwd+bwd"):
        for column in ("readable ms", "fast ms", "x readable", "x indexed", "x peer", "GFLOP/s", "of product"):
            drawn.add_column(f"{part}\n{column}", justify="right")
    for result in results:
        row: list[str] = []
        for part in ("forward", "forward_backward"):
            one = result[part]
            row += [f"{1e3 * one['seconds']['readable']:.2f}", f"{1e3 * one['seconds']['fast']:.2f}",
                      f"{one['fast_to_readable']:.2f}", f"{one['fast_to_indexed']:.2f}",
                      f"{one['fast_to_peer']:.2f}" if "fast_to_peer" in one else "",
                      f"{one['gflops']:.0f}", f"{1 / one['fast_to_product']:.0%}"]  # fmt: skip
        drawn.add_row(result["kind"], *row)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("kinds", nargs="*", default=[])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--slow-turns", type=int, default=3, help="of the indexed loop")
    arguments = parser.parse_args()
    kinds = arguments.kinds or [kind for kind in RECURRENT if kind not in WRAPPERS]
    console = Console(width=200)
    results = []
    for shape in SHAPES:
        part = [measure(kind, shape, arguments.turns, arguments.slow_turns) for kind in kinds]
        console.print(table(shape, part))
        results += part
    if not arguments.kinds:
        path = record.write(
            "unroll",
            {
                "definition": "median seconds of alternating runs in float32; x has a gradient too; operations are "
                "those of matrix products, counted on the readable path",
                "turns": arguments.turns,
                "turns_of_the_indexed_loop": arguments.slow_turns,
                "fused": sorted(FUSED),
                "results": results,
            },
        )
        print(path)


if __name__ == "__main__":
    main()

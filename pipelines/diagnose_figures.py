"""The pictures of ``seqapp diagnose``: gradients over time, clipping, recurrent matrices, gates, one tap.

Okabe & Ito's colours, which colour-blind people tell apart, each with a line style of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from seqapp.diagnostics import LEFT, RIGHT, Clipping, Saturation, Verdict, row_quantiles

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
MOST_CURVES = len(COLOURS)
QUANTITIES = (
    "state by earlier state\n$||\\partial h_T / \\partial h_k||$",
    "output by earlier input\n$||\\partial y_T / \\partial x_k||$",
)
SHARES = (0.1, 0.5, 0.9)
"""Of the rows: the lower edge of the band, the line, the upper edge."""
SMALLEST, LARGEST = -12.0, 6.0
"""Decades that a picture of gradients shows; what leaves them is beyond any use in training."""


@dataclass(frozen=True)
class Curve:
    """One network's gradient flow.

    Attributes:
        name: in the legend.
        group: curves of a group share a panel.
        state: (B, T) log10 |dh_T/dh_k| by distance.
        output: (B, T) log10 |dy_T/dx_k| by distance.
        note: beside the name, such as the rate.
    """

    name: str
    group: str
    state: Tensor
    output: Tensor
    note: tuple[str, str]


def gradient_flow(curves: Sequence[Curve], title: str) -> Figure:
    """|dh_T/dh_k| and |dy_T/dx_k| over distance, a row for each group, all on the same logarithmic scale.

    Args:
        curves: at most :data:`MOST_CURVES` in a group.
        title: above the picture.
    """
    groups = list(dict.fromkeys(curve.group for curve in curves))
    figure = Figure(figsize=(14, 1.2 + 3.3 * len(groups)), layout="constrained")
    figure.suptitle(f"{title}\nline: median row; band: 10 % to 90 % of the rows; cross: exactly zero from there on",
                    fontsize=12)  # fmt: skip
    grid = figure.subplots(len(groups), 2, squeeze=False, sharex=True, sharey=True)
    bottom, top = _decades([part for curve in curves for part in (curve.state, curve.output)])
    for row, group in enumerate(groups):
        for column, axes in enumerate(grid[row]):
            for index, curve in enumerate(curve for curve in curves if curve.group == group):
                values = curve.state if column == 0 else curve.output
                color, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
                _draw_curve(axes, values, color, style, f"{curve.name}\n    {_both(curve.note)}", bottom)
            axes.axhline(1, color="0.5", linewidth=0.8, zorder=0)
            for bound in (1e-3, 1e3):
                if bottom < np.log10(bound) < top:
                    axes.axhline(bound, color="0.7", linewidth=0.7, linestyle=(0, (1, 3)), zorder=0)
            axes.set(yscale="log", ylim=(10.0**bottom, 10.0**top))
            axes.grid(alpha=0.2)
            if column == 0:
                axes.set_title(group, fontsize=11, loc="left", fontweight="bold")
            axes.set_ylabel(QUANTITIES[column], fontsize=11)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.tick_params(labelleft=True, labelbottom=True)
            if column:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5, frameon=False, handlelength=3.5)
    for axes in grid[-1]:
        axes.set_xlabel("distance T - k (steps back in time)")
    return figure


def _both(notes: tuple[str, str]) -> str:
    state, output = notes
    return f"both {state}" if state == output else f"state {state}, output {output}"


def _draw_curve(axes: Axes, values: Tensor, color: str, style: Any, label: str, bottom: float) -> None:  # fmt: skip
    lower, middle, upper = (part.numpy() for part in row_quantiles(values, SHARES))
    distances = np.arange(len(middle))
    # Exactly zero has no place on a logarithmic axis: the curve ends there, and a cross on the floor says why.
    shown = np.where(np.isfinite(middle), middle, np.nan)
    axes.plot(distances, 10.0**shown, color=color, linestyle=style, linewidth=2, label=label)
    inside = np.isfinite(lower) & np.isfinite(upper)
    axes.fill_between(distances, 10.0**lower, 10.0**upper, where=inside, color=color, alpha=0.12, linewidth=0)
    zero = np.flatnonzero(~np.isfinite(middle))
    if len(zero):
        start = int(zero[0])
        axes.plot([start], [10.0 ** (bottom + 0.4)], color=color, marker="x", markersize=8, markeredgewidth=2)
        if start:
            axes.plot([start - 1, start], [10.0 ** middle[start - 1], 10.0 ** (bottom + 0.4)], color=color,
                        linestyle=style, linewidth=1)  # fmt: skip


def _decades(parts: Sequence[Tensor]) -> tuple[float, float]:
    middles = np.concatenate([row_quantiles(part, (0.5,))[0].numpy() for part in parts])
    finite = middles[np.isfinite(middles)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
    return max(SMALLEST, np.floor(low) - 1), min(LARGEST, np.ceil(high) + 1)


def clipping(parts: Mapping[str, Sequence[Clipping]], threshold: float, limit: float) -> Figure:
    """The norm of the parameter gradient over the length of the sequence, before and after clipping, a panel each."""
    columns = min(4, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(max(7.5, 3.9 * columns), 3.6 * rows + 1.1), layout="constrained")
    figure.suptitle("What clipping does: the gradient of the weights is cut, the network's Jacobians stay as they are",
                    fontsize=12)  # fmt: skip
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, found) in zip(grid.flat, parts.items(), strict=False):
        lengths = [point.length for point in found]
        axes.axhline(threshold, color="0.6", linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        for index, (label, values) in enumerate({
            "before clipping": [point.norm for point in found],
            f"clipped by norm (at {threshold:g}, dotted line)": [point.by_norm for point in found],
            f"clipped by value (each in ±{limit:g})": [point.by_value for point in found],
        }.items()):  # fmt: skip
            axes.plot(lengths, values, color=COLOURS[index], linestyle=STYLES[index], marker="osx"[index], markersize=4,
                      linewidth=2.2 - 0.4 * index, label=label)  # fmt: skip
        turned = min(point.cosine for point in found)
        axes.set_title(name, fontsize=10.5)
        if turned < 0.9995:
            angle = float(np.degrees(np.arccos(turned)))
            axes.text(0.97, 0.03, f"by value also turns it, by up to {angle:.0f}°", transform=axes.transAxes,
                      fontsize=8.5, ha="right")  # fmt: skip
        axes.set(yscale="log")
        axes.grid(alpha=0.2)
        axes.tick_params(labelleft=True, labelbottom=True)
    low, high = _decades([torch.tensor([[point.norm, point.by_value]]).log10() for found in parts.values()
                          for point in found])  # fmt: skip
    grid[0, 0].set_ylim(10.0**low, 10.0**high)
    for axes in grid.flat[len(parts) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("norm of the gradient of the weights")
    for axes in grid[-1]:
        axes.set_xlabel("length of the sequence T (steps)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def spectra(
    series: Mapping[str, tuple[Sequence[tuple[int, float]], Sequence[tuple[int, float]]]], title: str
) -> Figure:
    """Spectral radius and largest singular value of every recurrent matrix over epochs.

    Args:
        series: matrix -> its spectral radii and its singular values, each (epoch, value); epoch 0 is before training.
        title: above the picture.
    """
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle(title)
    for column, what in enumerate(("spectral radius (largest |eigenvalue|)", "largest singular value")):
        axes = figure.add_subplot(1, 2, column + 1)
        for index, (name, both) in enumerate(series.items()):
            points = both[column]
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], label=name,
                      color=COLOURS[index % len(COLOURS)], linestyle=STYLES[index % len(STYLES)],
                      marker="osD^vP*"[index // len(COLOURS) % 7], markersize=4)  # fmt: skip
        axes.axhline(1, color="0.5", linewidth=0.8, zorder=0)
        axes.set(xlabel="epoch (0: before training)", title=what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if column:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


Gates = Mapping[str, Saturation]


def gates(parts: Mapping[str, Mapping[str, Gates]], title: str) -> Figure:
    """Saturated shares, a row for each layer: a scatter per gate with a mark for each unit, and bars.

    Args:
        parts: layer -> state of its weights, such as "trained" -> gate -> its saturation.
        title: above the picture.
    """
    names = {layer: list(next(iter(states.values()))) for layer, states in parts.items()}
    widest = max(map(len, names.values()))
    figure = Figure(figsize=(3.1 * widest + 5, 3.5 * len(parts) + 0.9), layout="constrained")
    figure.suptitle(f"{title}\na mark is a unit: up the left edge it is mostly shut, out to the right mostly open",
                    fontsize=12)  # fmt: skip
    grid = figure.subplots(len(parts), widest + 1, squeeze=False, width_ratios=[1.0] * widest + [1.35])
    for row, (layer, states) in enumerate(parts.items()):
        for column, axes in enumerate(grid[row, :widest]):
            if column >= len(names[layer]):
                axes.set_axis_off()
                continue
            gate = names[layer][column]
            axes.plot([0, 1], [1, 0], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            for index, (state, found) in enumerate(states.items()):
                color, marker = COLOURS[1 + index % 6], "os^Dv"[index % 5]
                axes.scatter(found[gate].right.numpy(), found[gate].left.numpy(), s=24, marker=marker, label=state,
                             facecolors=color if index == 0 else "none", edgecolors=color, linewidths=0.0 if index == 0
                             else 1.5, alpha=0.6 if index == 0 else 1.0)  # fmt: skip
            axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.set_title(f"{gate} gate", fontsize=10.5)
            axes.set_xlabel(f"share of time open (> {RIGHT:g})", fontsize=9)
            axes.set_ylabel((f"{layer}\n" if column == 0 else "") + f"share of time shut (< {LEFT:g})", fontsize=9)
            axes.grid(alpha=0.2)
            if column == 0 and len(states) > 1:
                axes.legend(loc="upper right", fontsize=8.5)
        _gate_bars(grid[row, widest], states, names[layer])
        if row == 0:
            grid[row, widest].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)
    return figure


def _gate_bars(axes: Axes, states: Mapping[str, Gates], names: Sequence[str]) -> None:
    rows = [(gate if len(states) == 1 else f"{gate}, {state}", found[gate])
            for gate in names for state, found in states.items()]  # fmt: skip
    places = [-(index + 0.5 * (index // len(states))) for index in range(len(rows))]
    left = np.array([float(part.left.mean()) for _, part in rows])
    right = np.array([float(part.right.mean()) for _, part in rows])
    start = np.zeros(len(rows))
    between = 1 - left - right
    for label, shares, color, ink in (("shut", left, COLOURS[2], "white"), ("between", between, "0.88", "black"),
                                      ("open", right, COLOURS[1], "white")):  # fmt: skip
        axes.barh(places, shares, left=start, color=color, label=label, edgecolor="white", height=0.75)
        for place, begin, share in zip(places, start, shares, strict=True):
            if share >= 0.08:
                axes.text(begin + share / 2, place, f"{share:.0%}", ha="center", va="center", fontsize=9, color=ink,
                          fontweight="bold")  # fmt: skip
        start = start + shares
    axes.set(xlim=(0, 1), yticks=places)
    axes.set_yticklabels([name for name, _ in rows])
    axes.set_xlabel("share of units and positions", fontsize=9)


Regions = Sequence[tuple[float, float, Verdict]]


def one_tap(
    weights: Sequence[float],
    responses: Mapping[tuple[str, str], tuple[Tensor, Regions]],
) -> Figure:
    """|h_t| of h_t = f(w h_{t-1} + x_t) over w and t, a row for each f, a column for each signal.

    Args:
        weights: (N,) rising.
        responses: (f, signal) -> h (N, T), and the verdict of each range of weights.
    """
    rows = list(dict.fromkeys(activation for activation, _ in responses))
    columns = list(dict.fromkeys(signal for _, signal in responses))
    figure = Figure(figsize=(13, 2.75 * len(rows) + 1), layout="constrained")
    figure.suptitle("One tap in a loop, $h_t = f(w\\,h_{t-1} + x_t)$: grey strip: bounded, orange: unbounded",
                    fontsize=13)  # fmt: skip
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
    said = {"impulse": "impulse ($x_1 = 1$, then 0)", "constant": "constant input ($x_t = 1$)"}
    image = None
    for row, activation in enumerate(rows):
        for column, signal in enumerate(columns):
            axes = grid[row, column]
            h, regions = responses[activation, signal]
            values = h.abs().T.numpy()
            steps = len(values)
            image = axes.pcolormesh(weights, np.arange(1, steps + 1), np.clip(values, 1e-3, 1e3), shading="nearest",
                                    cmap="viridis", norm=LogNorm(1e-3, 1e3), rasterized=True)  # fmt: skip
            for bound in (-1, 1):
                axes.axvline(bound, color="white", linestyle="--", linewidth=1.3)
            # The verdicts stand on a strip of their own above the map, unbounded ones in colour.
            axes.set_ylim(0.5, steps * 1.16)
            for low, high, verdict in regions:
                _verdict(axes, low, high, verdict, steps)
            axes.set_title(f"{activation}, {said[signal]}", fontsize=10.5, loc="left")
            axes.set_yticks([1, *range(10, steps + 1, 10)])
            axes.set_xticks(np.arange(-2, 2.5, 0.5))
            axes.tick_params(labelbottom=True)
            if column == 0:
                axes.set_ylabel("step t")
            if row == len(rows) - 1:
                axes.set_xlabel("recurrent weight w  (dashed: |w| = 1)")
    if image is not None:
        figure.colorbar(image, ax=grid, extend="both", shrink=0.6, aspect=40,
                        label="|h_t|  (darkest: 0.001 and below, brightest: 1000 and above)")  # fmt: skip
    return figure


def _verdict(axes: Axes, low: float, high: float, verdict: Verdict, steps: int) -> None:
    if high - low < 0.02:
        return
    colour = "#f4f4f4" if verdict.bounded else COLOURS[2]
    axes.fill_between([low, high], steps + 0.5, steps * 1.16, color=colour, edgecolor="0.4", linewidth=0.5)
    text = {"grows exponentially": "grows as $|w|^t$", "grows linearly": "grows as t"}.get(verdict.kind, verdict.kind)
    if high - low > 0.3:
        colour, weight = ("black", "normal") if verdict.bounded else ("white", "bold")
        axes.text((low + high) / 2, steps * 1.08, text, ha="center", va="center", fontsize=8.5, color=colour,
                  fontweight=weight)  # fmt: skip

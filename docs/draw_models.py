"""Draw docs/images/models/*.svg: each network as a graph, unrolled over a few steps.

python docs/draw_models.py

A network is described by its nodes at one step and by edges with a delay. tests/test_models_page.py checks every
description against the network itself: what depends on what, through which weight, and where the gradient flows.
The pictures are plain SVG text, so that equal descriptions give equal files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

TARGET = Path(__file__).parent / "images" / "models"

WIDTH, MARGIN, ROW = 700, 14, 86
SHORT = 80
"""A label stands beside an arrow shorter than this, else on it."""
INK, ACCENT, PALE = "#222222", "#c2410c", 0.3
FILLS = {"input": "#ffffff", "hidden": "#dbe9f6", "gate": "#f3f0dd", "output": "#e4e4e4"}
SERIF = "font-family=\"Georgia, 'Times New Roman', 'DejaVu Serif', serif\" font-style=\"italic\""
SANS = "font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\""

Point = tuple[float, float]


@dataclass(frozen=True)
class Weight:
    """A part of a parameter, and the number that cuts an arrow when it stands there.

    Args:
        name: as in ``named_parameters``, or a fixed weight that is an attribute of the network.
        rows: which of ``of`` equal blocks of rows; none for all rows.
        columns: which of ``of`` equal blocks of columns; none for all columns.
        of: how many blocks.
        value: 0 for what the source is multiplied by; far from 0 for the bias of a gate, which it shuts or opens.
    """

    name: str
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    of: int = 1
    value: float = 0.0


@dataclass(frozen=True)
class Node:
    """A value at each step.

    Args:
        name: what edges call it.
        label: what is written; @ stands for the step, _{} and ^{} lower and raise.
        row: height above the inputs, in rows.
        shift: pixels to the right of the middle of the column.
        role: which fill.
    """

    name: str
    label: str
    row: float
    shift: float = 0
    role: Literal["input", "hidden", "gate", "output"] = "hidden"


@dataclass(frozen=True)
class Edge:
    """``target`` at step t depends on ``source`` at step t - ``delay``.

    Args:
        source: a node.
        target: a node.
        label: what is written on the arrow.
        delay: steps; below 0 for a network that reads backwards.
        weight: what the source is multiplied by, where it is a parameter or fixed.
        shut: gates that cut the arrow when they stand still, all of any one group.
        accent: drawn in the second colour.
        detached: the number passes, the gradient does not; drawn dashed.
        fan: one of many like it, drawn in full at the column ``focus`` only.
        bend: how far the arrow bulges to the left of its direction, as a share of its length.
        at: where on the arrow the label stands, 0 to 1.
        left: a label beside the arrow stands to its left.
    """

    source: str
    target: str
    label: str = ""
    delay: int = 0
    weight: Weight | None = None
    shut: tuple[tuple[Weight, ...], ...] = ()
    accent: bool = False
    detached: bool = False
    fan: bool = False
    bend: float = 0.0
    at: float = 0.5
    left: bool = False


@dataclass(frozen=True)
class Network:
    """What is drawn, and the spec of the network it stands for.

    Args:
        spec: a small network of this kind, as a config has it.
        title: what the picture shows, for readers who do not see it.
        nodes: those of one step.
        edges: those that end at one step.
        note: one line under the picture.
        outputs: the nodes that y_t consists of.
        carry: for each leaf of the carry after step t, the nodes it holds, each with its step counted from t; a leaf
            (B, P, ...) holds P of them. An empty leaf depends on nothing.
        gates: the node that the network's ``gates`` method computes.
        steps: columns.
        last: the rightmost column is step t + last.
        focus: the column whose fan is drawn in full.
    """

    spec: Mapping[str, Any]
    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    note: str = ""
    outputs: tuple[str, ...] = ("y",)
    carry: tuple[tuple[tuple[str, int], ...], ...] = field(default=())
    gates: str | None = None
    steps: int = 3
    last: int = 1
    focus: int | None = None


def _bias(block: int, of: int, value: float) -> Weight:
    return Weight("b", rows=(block,), of=of, value=value)


SHUT, OPEN = -1e4, 1e4
"""Biases that make a sigmoid exactly 0 or 1."""


def _x(shift: float = 0) -> Node:
    return Node("x", "x_{@}", 0, shift, "input")


def _elman(kind: str, *, detached: bool) -> Network:
    return Network(
        spec={"kind": kind, "hidden_size": 3, "output_size": 2},
        title="Input to hidden by V, hidden to output by U, and the hidden state back to itself one step later by W"
        + (", where no gradient flows back." if detached else "."),
        nodes=(_x(), Node("h", "h_{@}", 1), Node("y", "y_{@}", 2, role="output")),
        edges=(
            Edge("x", "h", "V", weight=Weight("V")),
            Edge("h", "h", "W", 1, Weight("W"), accent=True, detached=detached),
            Edge("h", "y", "U", weight=Weight("output.weight")),
        ),
        note="Dashed: the number passes, the gradient stops." if detached else "Without output_size, y is h.",
        carry=((("h", 0),),),
    )


def _lstm(kind: str, out: str, note: str) -> Network:
    i, f, o = _bias(0, 4, SHUT), _bias(1, 4, SHUT), _bias(3, 4, SHUT)
    keep = _bias(1, 4, OPEN)
    return Network(
        spec={"kind": kind, "hidden_size": 3},
        title="Gates read the input and the output before; they decide what enters the memory c, stays in it and "
        "leaves it.",
        nodes=(
            _x(-48),
            Node("gates", "i, f, g, o", 1, -48, "gate"),
            Node("c", "c_{@}", 1.85, 40),
            Node("y", "y_{@} = h_{@}", 2.9, 10, "output"),
        ),
        edges=(
            Edge("x", "gates", "V", weight=Weight("V")),
            Edge("y", "gates", "W", 1, Weight("W"), at=0.76),
            Edge("gates", "c", "i·g", shut=((i, keep),), left=True),
            Edge("c", "c", "×f", 1, shut=((f,),), accent=True, at=0.35),
            Edge("c", "y", out, shut=((o,),), left=True, at=0.45),
            Edge("gates", "y", "×o", shut=((o,),), bend=0.12, at=0.6),
        ),
        note=note,
        carry=((("y", 0),), (("c", 0),)),
        gates="gates",
    )


def _gru(kind: str, before: Weight | None, after: Weight | None, note: str) -> Network:
    r, lost, kept = _bias(0, 3, SHUT), _bias(1, 3, SHUT), _bias(1, 3, OPEN)
    return Network(
        spec={"kind": kind, "hidden_size": 3},
        title="Gates read the input and the state before; r limits what of the old state the candidate n sees, u "
        "decides how much of the old state stays.",
        nodes=(
            _x(),
            Node("gates", "r, u", 1, -70, "gate"),
            Node("reset", "×r", 1.75, -38, "gate"),
            Node("n", "n_{@}", 2.2, 32),
            Node("y", "y_{@} = h_{@}", 3.2, 0, "output"),
        ),
        edges=(
            Edge("x", "gates", "V", weight=Weight("V", rows=(0, 1), of=3)),
            Edge("x", "n", "V_{n}", weight=Weight("V", rows=(2,), of=3), at=0.3),
            Edge("y", "gates", "W", 1, Weight("W", rows=(0, 1), of=3), at=0.6),
            Edge("y", "reset", "W_{n}" if before else "", 1, before, at=0.6),
            Edge("gates", "reset"),
            Edge("reset", "n", "W_{n}" if after else "", weight=after, shut=((r,),)),
            Edge("n", "y", "×(1−u)", shut=((kept,),), left=True, at=0.4),
            Edge("gates", "y", shut=((lost,), (kept,)), bend=0.2),
            Edge("y", "y", "×u", 1, shut=((lost,),), accent=True),
        ),
        note=note,
        carry=((("y", 0),),),
        gates="gates",
    )


def _min(kind: str, gates: str, blocks: tuple[int, ...], keep: str, add: str) -> Network:
    of = len(blocks) + 1
    kept, lost = (_bias(0, 2, SHUT), _bias(0, 2, OPEN)) if of == 2 else (_bias(1, 3, SHUT), _bias(0, 3, SHUT))
    return Network(
        spec={"kind": kind, "hidden_size": 3},
        title="Gates and candidate read the input alone; the state before is only scaled and added to.",
        nodes=(
            _x(),
            Node("gates", gates, 1, -44, "gate"),
            Node("n", "n_{@}", 1, 44),
            Node("y", "y_{@} = h_{@}", 2, 0, "output"),
        ),
        edges=(
            Edge("x", "gates", "V", weight=Weight("V", rows=blocks, of=of), shut=((lost,), (kept,)) if of == 2 else ()),
            Edge("x", "n", "V_{n}", weight=Weight("V", rows=(of - 1,), of=of)),
            Edge("gates", "y", shut=((lost,), (kept,))),
            Edge("n", "y", add, shut=((kept,),), at=0.25),
            Edge("y", "y", keep, 1, shut=((lost,),), accent=True),
        ),
        note="No arrow leads from h to a gate, so all steps can be computed at once.",
        carry=((("y", 0),),),
        gates="gates",
    )


def _layers(*, residual: bool = False, skip: bool = False) -> Network:
    lstm = {"kind": "elman", "hidden_size": 3}
    spec = {"kind": "stack", "layers": [lstm, lstm], "dropout": 0.3}
    first = Edge("x", "h1", "V^{1}", weight=Weight("layers.0.V"))
    one = Edge("h1", "h1", "W^{1}", 1, Weight("layers.0.W"), accent=not residual and not skip)
    two = Edge("h2", "h2", "W^{2}", 1, Weight("layers.1.W"), accent=not residual and not skip)
    up = Weight("layers.1.V")
    carry = ((("h1", 0),), (("h2", 0),))
    if residual:
        return Network(
            spec={**spec, "residual": True},
            title="Two layers; each layer's input is added to its output.",
            nodes=(
                _x(),
                Node("h1", "h^{1}_{@}", 1),
                Node("s", "+", 1.75, role="gate"),
                Node("h2", "h^{2}_{@}", 2.65),
                Node("y", "y_{@} = +", 3.45, role="output"),
            ),
            edges=(
                first,
                one,
                Edge("h1", "s"),
                Edge("x", "s", accent=True, bend=-0.32),
                Edge("s", "h2", "V^{2}", weight=up),
                two,
                Edge("h2", "y"),
                Edge("s", "y", accent=True, bend=-0.32),
            ),
            note="residual: a layer's input goes round it and is added, wherever the sizes are equal.",
            carry=carry,
        )
    if skip:
        return Network(
            spec={**spec, "skip_to_output": True},
            title="Two layers; the outputs of both stand side by side in y.",
            nodes=(
                _x(),
                Node("h1", "h^{1}_{@}", 1),
                Node("h2", "h^{2}_{@}", 2),
                Node("y", "y_{@} = [h^{1}_{@}, h^{2}_{@}]", 3, role="output"),
            ),
            edges=(
                first,
                one,
                Edge("h1", "h2", "V^{2}", weight=up),
                two,
                Edge("h2", "y", accent=True),
                Edge("h1", "y", accent=True, bend=-0.3),
            ),
            note="skip_to_output: every layer is seen from outside.",
            carry=carry,
        )
    return Network(
        spec=spec,
        title="Two layers; the output of the lower one is the input of the upper one.",
        nodes=(_x(), Node("h1", "h^{1}_{@}", 1), Node("h2", "y_{@} = h^{2}_{@}", 2, role="output")),
        edges=(first, one, Edge("h1", "h2", "V^{2}", weight=up), two),
        note="dropout acts on the arrows V² between the layers, never on those from step to step.",
        outputs=("h2",),
        carry=carry,
    )


def _jordan() -> Network:
    return Network(
        spec={"kind": "jordan", "hidden_size": 3, "output_size": 2},
        title="Input to hidden by V, hidden to output by U, and the output back to the hidden layer one step later by "
        "W.",
        nodes=(_x(), Node("h", "h_{@}", 1), Node("y", "y_{@}", 2, role="output")),
        edges=(
            Edge("x", "h", "V", weight=Weight("V")),
            Edge("y", "h", "W", 1, Weight("W"), accent=True),
            Edge("h", "y", "U", weight=Weight("output.weight")),
        ),
        note="What y does not show is lost: no arrow leads from h to the next step.",
        carry=((("y", 0),),),
    )


def _jordan_memory() -> Network:
    return Network(
        spec={"kind": "jordan_memory", "hidden_size": 3, "output_size": 2},
        title="As jordan, but the output goes into a memory m that fades by the factor a, and the hidden layer reads "
        "the memory.",
        nodes=(
            _x(40),
            Node("m", "m_{@}", 1.35, -62),
            Node("h", "h_{@}", 1.35, 40),
            Node("y", "y_{@}", 2.35, 40, role="output"),
        ),
        edges=(
            Edge("x", "h", "V", weight=Weight("V"), at=0.2),
            Edge("y", "m", "1", 1, accent=True),
            Edge("m", "m", "a", 1, Weight("decay"), accent=True, bend=-0.2, at=0.3),
            Edge("m", "h", "W", weight=Weight("W")),
            Edge("h", "y", "U", weight=Weight("output.weight")),
        ),
        note="1 and a are fixed; only V, W and U are learned.",
        carry=((("m", 1),),),
    )


def _output_recurrent() -> Network:
    return Network(
        spec={"kind": "output_recurrent", "hidden_size": 3},
        title="Input to h by V, and the output back to itself one step later by W.",
        nodes=(_x(), Node("h", "h_{@}", 1), Node("y", "y_{@} = o_{@}", 2, role="output")),
        edges=(
            Edge("x", "h", "V", weight=Weight("V")),
            Edge("h", "y", "f"),
            Edge("y", "y", "W", 1, Weight("W"), accent=True),
        ),
        carry=((("y", 0),),),
    )


def _state_space() -> Network:
    return Network(
        spec={"kind": "state_space", "hidden_size": 3, "layers": 2},
        title="The input by V and the state before by W enter a perceptron of two layers, whose result is the state.",
        nodes=(_x(), Node("s", "f(s^{1}_{@})", 1), Node("y", "y_{@} = h_{@}", 2, role="output")),
        edges=(
            Edge("x", "s", "V", weight=Weight("V")),
            Edge("y", "s", "W", 1, Weight("W"), accent=True),
            Edge("s", "y", "U_{2}", weight=Weight("above.0.weight")),
        ),
        note="Drawn with D = 2 layers, the default.",
        carry=((("y", 0),),),
    )


def _tdnn() -> Network:
    return Network(
        spec={"kind": "tdnn", "hidden_size": 3, "window": 3},
        title="Each output reads a window of three inputs; nothing is fed back.",
        nodes=(_x(), Node("y", "y_{@}", 1.4, role="output")),
        edges=tuple(
            Edge("x", "y", f"V_{{{k}}}", k, Weight("V", columns=(k,), of=3), accent=True, fan=True, at=0.4)
            for k in range(3)
        ),
        note="Drawn with a window of N = 3; the default is 5. No arrow leads from step to step.",
        carry=((("x", -1), ("x", 0)),),
        steps=4,
        focus=2,
    )


def _narx() -> Network:
    return Network(
        spec={"kind": "narx", "hidden_size": 3, "output_size": 2, "input_delays": 1, "output_delays": 2},
        title="The hidden layer reads the input, the input before, and the last two outputs.",
        nodes=(_x(), Node("h", "h_{@}", 1.1), Node("y", "y_{@}", 2.3, role="output")),
        edges=(
            Edge("x", "h", "V_{0}", weight=Weight("V", columns=(0,), of=2), fan=True),
            Edge("x", "h", "V_{1}", 1, Weight("V", columns=(1,), of=2), fan=True),
            Edge("y", "h", "W_{1}", 1, Weight("W", columns=(0,), of=2), accent=True, fan=True),
            Edge("y", "h", "W_{2}", 2, Weight("W", columns=(1,), of=2), accent=True, fan=True, at=0.35),
            Edge("h", "y", "U", weight=Weight("output.weight"), at=0.15),
        ),
        note="Drawn with p = 1 and q = 2; the default is 2 and 2. The arrow W₂ jumps over a step.",
        carry=((("x", 0),), (("y", 0), ("y", -1))),
        steps=4,
        focus=2,
    )


def _birnn() -> Network:
    elman = {"kind": "elman", "hidden_size": 3}
    return Network(
        spec={"kind": "birnn", "layer": elman},
        title="One layer reads forwards, another backwards; each output joins both.",
        nodes=(
            _x(),
            Node("a", "a_{@}", 1, -40),
            Node("b", "b_{@}", 1.75, 40),
            Node("y", "y_{@} = [a_{@}, b_{@}]", 2.75, role="output"),
        ),
        edges=(
            Edge("x", "a", "V", weight=Weight("ahead.V")),
            Edge("x", "b", "V'", weight=Weight("back.V"), at=0.42),
            Edge("a", "a", "W", 1, Weight("ahead.W"), accent=True),
            Edge("b", "b", "W'", -1, Weight("back.W"), accent=True),
            Edge("a", "y"),
            Edge("b", "y"),
        ),
        note="Drawn over elman: a reads from left to right, b from right to left.",
    )


def _variational() -> Network:
    return Network(
        spec={
            "kind": "variational",
            "layer": {"kind": "elman", "hidden_size": 3},
            "input_dropout": 0.3,
            "recurrent_dropout": 0.3,
        },
        title="A recurrent layer whose input is multiplied by one mask and whose recurrent signal by another, the same "
        "two at every step.",
        nodes=(_x(), Node("y", "h_{@}", 1.25, role="output")),
        edges=(
            Edge("x", "y", "× mask_{x}, V", weight=Weight("layer.V"), accent=True),
            Edge("y", "y", "× mask_{h}, W", 1, Weight("layer.W"), accent=True),
        ),
        note="Drawn over elman. Both masks stay the same at every step of a row.",
        carry=((("y", 0),), (), ()),
        steps=3,
    )


def _weight_dropout() -> Network:
    return Network(
        spec={"kind": "weight_dropout", "layer": {"kind": "elman", "hidden_size": 3}, "dropout": 0.5},
        title="A recurrent layer whose recurrent weights are multiplied by one mask, the same at every step.",
        nodes=(_x(), Node("y", "h_{@}", 1.25, role="output")),
        edges=(
            Edge("x", "y", "V", weight=Weight("layer.V")),
            Edge("y", "y", "W × mask", 1, Weight("layer.W"), accent=True),
        ),
        note="Drawn over elman. The mask stays the same for all rows and steps of a pass.",
        carry=((("y", 0),),),
        steps=3,
    )


NETWORKS: dict[str, Network] = {
    "elman": _elman("elman", detached=False),
    "elman_1step": _elman("elman_1step", detached=True),
    "jordan": _jordan(),
    "jordan_memory": _jordan_memory(),
    "output_recurrent": _output_recurrent(),
    "state_space": _state_space(),
    "tdnn": _tdnn(),
    "narx": _narx(),
    "lstm": _lstm(
        "lstm", "tanh", "The memory c goes from step to step through no matrix: it is scaled by f and added to."
    ),
    "lstm_linear_output": _lstm("lstm_linear_output", "", "The one difference from lstm: no tanh between c and h."),
    "gru": _gru(
        "gru",
        None,
        Weight("W", rows=(2,), of=3),
        "r acts on the old state before the product with Wₙ.",
    ),
    "gru_reset_after": _gru(
        "gru_reset_after",
        Weight("W", rows=(2,), of=3),
        None,
        "r acts after the product of the old state with Wₙ.",
    ),
    "mingru": _min("mingru", "z", (0,), "×(1−z)", "×z"),
    "minlstm": _min("minlstm", "f, i", (0, 1), "×f/(f+i)", "×i/(f+i)"),
    "birnn": _birnn(),
    "stack": _layers(),
    "stack_residual": _layers(residual=True),
    "stack_skip": _layers(skip=True),
    "variational": _variational(),
    "weight_dropout": _weight_dropout(),
}
"""By the name of the picture's file."""


def _step_name(offset: int) -> str:
    return "t" if offset == 0 else f"t{'+' if offset > 0 else '−'}{abs(offset)}"


def _parts(label: str) -> list[tuple[str, int]]:
    """A label as runs of text, each with 0, -1 (lowered) or 1 (raised)."""
    parts = []
    for lowered, raised, plain in re.findall(r"_\{([^}]*)\}|\^\{([^}]*)\}|([^_^]+)", label):
        parts.append((lowered, -1) if lowered else (raised, 1) if raised else (plain, 0))
    return parts


def _at_step(label: str, offset: int) -> str:
    return label.replace("@-1", _step_name(offset - 1)).replace("@", _step_name(offset))


def _text_width(label: str, size: float) -> float:
    parts = _parts(label)
    stacked = sum(len(above[0]) for above, below in pairwise(parts) if (above[1], below[1]) == (1, -1))
    return size * (sum(len(text) * (0.4 if shift else 0.54) for text, shift in parts) - 0.25 * stacked)


def _text(label: str, at: Point, size: float, colour: str, *, patch: bool = False) -> str:
    spans, level, before = [], 0.0, ("", 0)
    for text, shift in _parts(label):
        wanted = {0: 0.0, -1: 0.24 * size, 1: -0.36 * size}[shift]
        small = f' font-size="{size * 0.72:.1f}"' if shift else ""
        move = f' dy="{wanted - level:.1f}"' if wanted != level else ""
        if shift == -1 and before[1] == 1:
            move += f' dx="{-0.44 * size * len(before[0]):.1f}"'
        spans.append(f"<tspan{move}{small}>{escape(text)}</tspan>")
        level, before = wanted, (text, shift)
    w = _text_width(label, size)
    white = f'<rect x="{at[0] - w / 2 - 5:.1f}" y="{at[1] - 9:.1f}" width="{w + 10:.1f}" height="19" fill="#ffffff"/>'
    return (white if patch else "") + (
        f'<text x="{at[0]:.1f}" y="{at[1] + 0.34 * size:.1f}" font-size="{size}" text-anchor="middle" fill="{colour}" '
        f"{SERIF}>{''.join(spans)}</text>"
    )


class _Picture:
    """Places of one network's nodes and arrows."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = {node.name: node for node in network.nodes}
        self.top = max(node.row for node in network.nodes)
        self.column = (WIDTH - 2 * MARGIN) / network.steps
        self.base = 44 + self.top * ROW
        self.height = self.base + 40 + (28 if network.note else 0)

    def offset(self, column: int) -> int:
        return column - self.network.steps + 1 + self.network.last

    def label(self, node: Node, column: int) -> str:
        return _at_step(node.label, self.offset(column))

    def centre(self, name: str, column: int) -> Point:
        node = self.nodes[name]
        return MARGIN + (column + 0.5) * self.column + node.shift, self.base - node.row * ROW

    def half(self, name: str, column: int) -> Point:
        return max(22.0, _text_width(self.label(self.nodes[name], column), 18) / 2 + 9), 18.0

    def border(self, name: str, column: int, towards: Point, gap: float) -> Point:
        """Where the line from the node's centre towards a point leaves the node, and a little further."""
        (x, y), (w, h) = self.centre(name, column), self.half(name, column)
        dx, dy = towards[0] - x, towards[1] - y
        share = min(w / abs(dx) if dx else math.inf, h / abs(dy) if dy else math.inf)
        share += gap / math.hypot(dx, dy)
        return x + dx * share, y + dy * share

    def arrow(self, edge: Edge, column: int) -> tuple[str, str]:
        """The arrow that ends at a column, and its label."""
        network = self.network
        start = column - edge.delay
        outside = not (0 <= start < network.steps and 0 <= column < network.steps)
        pale = outside or (edge.fan and column != network.focus)
        a, b = self.centre(edge.source, start), self.centre(edge.target, column)
        dx, dy = b[0] - a[0], b[1] - a[1]
        middle = (a[0] + b[0]) / 2 + edge.bend * dy * 2, (a[1] + b[1]) / 2 - edge.bend * dx * 2
        a, b = self.border(edge.source, start, middle, 2), self.border(edge.target, column, middle, 3)
        colour = ACCENT if edge.accent else INK
        towards = math.atan2(b[1] - middle[1], b[0] - middle[0])
        width = 2.6 if edge.accent else 1.6
        head = 11 if edge.accent else 9
        neck = b[0] - 0.8 * head * math.cos(towards), b[1] - 0.8 * head * math.sin(towards)
        wings = [
            (b[0] - head * math.cos(towards + turn), b[1] - head * math.sin(towards + turn)) for turn in (0.42, -0.42)
        ]
        path = f"M{a[0]:.1f},{a[1]:.1f} Q{middle[0]:.1f},{middle[1]:.1f} {neck[0]:.1f},{neck[1]:.1f}"
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (b, *wings))
        dashes = ' stroke-dasharray="8 6"' if edge.detached else ""
        faint = f' opacity="{PALE}"' if pale else ""
        halo = f'<path d="{path}" fill="none" stroke="#ffffff" stroke-width="{width + 5:.1f}"/>' if not pale else ""
        drawn = (
            f'{halo}<g{faint}><path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
            f'<polygon points="{points}" fill="{colour}"/></g>'
        )
        if pale or not edge.label:
            return drawn, ""
        s = edge.at
        x, y = ((1 - s) ** 2 * p + 2 * s * (1 - s) * q + s * s * r for p, q, r in zip(a, middle, b, strict=True))
        length = math.dist(a, b)
        if length < SHORT:
            across = (b[1] - a[1]) / length, -(b[0] - a[0]) / length
            side = -1 if across[0] < -0.3 or (abs(across[0]) <= 0.3 and across[1] > 0) else 1
            away = (-side if edge.left else side) * (
                7 + abs(across[0]) * _text_width(edge.label, 17) / 2 + abs(across[1]) * 8
            )
            x, y = x + across[0] * away, y + across[1] * away
        return drawn, _text(edge.label, (x, y), 17, colour, patch=length >= SHORT)

    def box(self, node: Node, column: int) -> str:
        (x, y), (w, h) = self.centre(node.name, column), self.half(node.name, column)
        round_off = 5 if node.role == "gate" else h
        return (
            f'<rect x="{x - w:.1f}" y="{y - h:.1f}" width="{2 * w:.1f}" height="{2 * h:.1f}" rx="{round_off:.1f}" '
            f'fill="{FILLS[node.role]}" stroke="{INK}" stroke-width="1.4"/>'
            + _text(self.label(node, column), (x, y), 18, INK)
        )


def draw(network: Network) -> str:
    """The picture as SVG text."""
    picture = _Picture(network)
    far = max(abs(edge.delay) for edge in network.edges)
    arrows = []
    for edge in network.edges:
        for column in range(-far, network.steps + far):
            start = column - edge.delay
            inside = [0 <= place < network.steps for place in (start, column)]
            if any(inside):
                arrows.append((all(inside), edge.accent, *picture.arrow(edge, column)))
    arrows.sort(key=lambda arrow: arrow[:2])
    height = picture.height
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
        f"<title>{escape(network.title)}</title>",
        f'<clipPath id="panel"><rect width="{WIDTH}" height="{height:.0f}" rx="14"/></clipPath>',
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="14" fill="#ffffff"/>',
        '<g clip-path="url(#panel)">',
        *(drawn for _, _, drawn, _ in arrows),
        "</g>",
        *(picture.box(node, column) for node in network.nodes for column in range(network.steps)),
        *(label for _, _, _, label in arrows if label),
    ]
    if network.note:
        lines.append(
            f'<text x="{WIDTH / 2:.0f}" y="{height - 14:.0f}" font-size="14" text-anchor="middle" fill="#444444" '
            f"{SANS}>{escape(network.note)}</text>"
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    """Write every picture."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, network in NETWORKS.items():
        (TARGET / f"{name}.svg").write_text(draw(network), encoding="utf-8")


if __name__ == "__main__":
    main()

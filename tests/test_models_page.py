"""docs/models.md says what the networks are: pictures, parameters, equations and configs are checked against them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import operator
import re
import sys
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
import yaml
from torch import Tensor, nn

from seqapp.nn import cells  # noqa: F401  (registers the networks by name)
from seqapp.nn.recurrent import ENCODERS, Encoder, Recurrent

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
LAYERED = {"birnn", "stack", "variational", "weight_dropout"}
STEPS, INPUTS = 5, 2


def load_draw_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_models", ROOT / "docs" / "draw_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw_models"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


draw_models: Any = load_draw_models()
NETWORKS: dict[str, Any] = draw_models.NETWORKS


def section(kind: str) -> str:
    found = re.search(rf"^## {kind}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found, f"docs/models.md has no section on {kind}"
    return found.group(1)


def rows() -> dict[str, list[str]]:
    """The cells of the table at the top, by kind."""
    table = {}
    for line in re.findall(r"^\| \[.*", PAGE, flags=re.MULTILINE):
        kind, *others = (cell.strip() for cell in line.strip("|").split("|"))
        table[kind.split("`")[1]] = others
    return table


# --- the pictures ---------------------------------------------------------------------------------------------------


Cut = frozenset[Any]
"""Weights put to 0 and gates shut, as ``draw_models.Weight``."""


class Graph:
    """A drawn network unrolled in time, without the arrows that are cut."""

    def __init__(self, network: Any, cut: Cut = frozenset(), *, gradient: bool = False) -> None:
        self.into: dict[str, list[tuple[str, int]]] = {node.name: [] for node in network.nodes}
        for edge in network.edges:
            stopped = edge.weight in cut or any(cut.issuperset(gates) for gates in edge.shut)
            if not stopped and not (gradient and edge.detached):
                self.into[edge.target].append((edge.source, edge.delay))

    def sources(
        self, target: tuple[str, int], times: range, stop: frozenset[tuple[str, int]] = frozenset()
    ) -> set[tuple[str, int]]:
        """Every (node, step) with a way to the target; ways end at ``stop``."""
        found, open_ = {target}, [target]
        while open_:
            name, t = here = open_.pop()
            if here in stop:
                continue
            for source, delay in self.into[name]:
                before = (source, t - delay)
                if t - delay in times and before not in found:
                    found.add(before)
                    open_.append(before)
        return found


def build(network: Any, cut: Cut = frozenset()) -> Encoder:
    """The network in double precision, parameters at random, so that no start hides a dependency, and some cut."""
    generator = torch.Generator().manual_seed(0)
    encoder = ENCODERS.build(network.spec, input_size=inputs(network)).double().eval()
    parameters = dict(encoder.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for weight in cut:
            if weight.name in parameters:
                for part in blocks(weight, parameters[weight.name]):
                    part.fill_(weight.value)
            else:
                assert hasattr(encoder, weight.name)
                setattr(encoder, weight.name, weight.value)
    return encoder


def blocks(weight: Any, parameter: Tensor) -> list[Tensor]:
    """The parts of a parameter that a weight names."""
    for axis, chosen in enumerate((weight.rows, weight.columns)):
        if chosen:
            return [parameter.chunk(weight.of, axis)[block] for block in chosen]
    return [parameter]


def cuts(network: Any) -> list[Cut]:
    """Every choice of weights to put to 0, with every group of gates to shut, and none."""
    weights = list(dict.fromkeys(edge.weight for edge in network.edges if edge.weight is not None))
    groups = [(), *dict.fromkeys(gates for edge in network.edges for gates in edge.shut)]
    choices = [chosen for size in range(len(weights) + 1) for chosen in combinations(weights, size)]
    return [frozenset((*chosen, *gates)) for chosen in choices for gates in groups]


def inputs(network: Any) -> int:
    return 3 if network.spec.get("residual") else INPUTS


def random_carry(carry: Any) -> Any:
    """The same random start for every row; what has width 0 stays."""
    if isinstance(carry, Tensor):
        return torch.randn_like(carry[:1]).expand_as(carry).clone()
    return tuple(random_carry(leaf) for leaf in carry)


def start(encoder: Recurrent[Any], x: Tensor) -> Any:
    torch.manual_seed(1)
    carry = encoder.initial_carry(len(x), x)
    masks = carry[1:] if type(encoder).__name__ == "Variational" else None
    return random_carry(carry) if masks is None else (random_carry(carry[0]), *masks)


def run(encoder: Encoder, x: Tensor) -> Tensor:
    if isinstance(encoder, Recurrent):
        y, _ = encoder(x, carry=start(encoder, x))
    else:
        y, _ = encoder(x)
    return cast(Tensor, y)


def measured(encoder: Encoder, size: int) -> set[tuple[int, int]]:
    """(t, k) for every output y_t that changes with input x_k."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, STEPS, size, generator=generator, dtype=torch.float64).repeat(1 + STEPS, 1, 1)
    for k in range(STEPS):
        x[1 + k, k] += torch.randn(size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = run(encoder, x)
    changed = ((y[1:] - y[:1]).abs() > 1e-10).any(-1)
    return {(t, k) for t, k in product(range(STEPS), repeat=2) if changed[k, t]}


def measured_gradient(encoder: Encoder, size: int) -> set[tuple[int, int]]:
    """(t, k) for every output y_t whose gradient reaches input x_k."""
    x = torch.randn(1, STEPS, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x.requires_grad_()
    y = run(encoder, x)
    found = set()
    for t in range(STEPS):
        if not y[:, t].requires_grad:
            continue
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True, allow_unused=True)
        if gradient is not None:
            found |= {(t, k) for k in range(STEPS) if gradient[0, k].abs().max() > 1e-10}
    return found


def drawn(network: Any, cut: Cut, *, gradient: bool = False) -> set[tuple[int, int]]:
    """(t, k) for every output y_t that a way leads to from x_k."""
    graph, times = Graph(network, cut, gradient=gradient), range(STEPS)
    return {
        (t, k)
        for t in times
        for name in network.outputs
        for source, k in graph.sources((name, t), times)
        if source == "x"
    }


@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs_depend_on_inputs_as_drawn(name: str) -> None:
    """Numbers and gradients, with all weights and with any of them cut."""
    network = NETWORKS[name]
    for cut in cuts(network):
        encoder = build(network, cut)
        assert measured(encoder, inputs(network)) == drawn(network, cut), cut
        assert measured_gradient(encoder, inputs(network)) == drawn(network, cut, gradient=True), cut


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_matrix_is_drawn_once(name: str) -> None:
    network = NETWORKS[name]
    encoder = build(network)
    seen = {key: torch.zeros_like(parameter) for key, parameter in encoder.named_parameters() if parameter.dim() > 1}
    for edge in network.edges:
        if edge.weight is not None and edge.weight.name in seen:
            for part in blocks(edge.weight, seen[edge.weight.name]):
                part += 1
    assert all(bool((count == 1).all()) for count in seen.values())


def leaves(carry: Any) -> Iterator[Tensor]:
    if isinstance(carry, Tensor):
        yield carry
    else:
        for part in carry:
            yield from leaves(part)


def slots(network: Any, carry: Any, t: int) -> list[tuple[tuple[str, int], Tensor]]:
    """What each part of a carry is in the picture, ``t`` being the last step before it."""
    found = []
    parts = list(leaves(carry))
    assert len(parts) == len(network.carry)
    for leaf, held in zip(parts, network.carry, strict=True):
        pieces = leaf.unbind(1) if leaf.dim() == 3 else (leaf,)
        if held:
            assert len(pieces) == len(held)
            found += [((node, t + offset), piece) for (node, offset), piece in zip(held, pieces, strict=True)]
    return found


CAUSAL = [name for name, network in NETWORKS.items() if network.carry]


@pytest.mark.parametrize("name", CAUSAL)
def test_one_step_depends_on_carry_as_drawn(name: str) -> None:
    """Outputs, gates and the carry after a step see the input and the carry before as drawn, and nothing else."""
    network = NETWORKS[name]
    for cut in cuts(network):
        assert one_step(network, cut) == one_drawn_step(network, cut), cut


Ways = dict[tuple[str, int], set[tuple[str, int]]]
"""What each value after a step depends on, both as (node, step), the step being 0."""


def one_step(network: Any, cut: Cut) -> Ways:
    encoder = build(network, cut)
    assert isinstance(encoder, Recurrent)
    x = torch.ones(2, inputs(network), dtype=torch.float64)
    before = start(encoder, x)

    def answers() -> dict[tuple[str, int], Tensor]:
        after, y = encoder.step(before, x)
        found = {**dict(slots(network, after, 0)), ("y", 0): y}
        if network.gates:
            gates: Any = encoder.gates
            found[(network.gates, 0)] = torch.cat(list(gates(before, x).values()), -1)
        return found

    ways: Ways = {place: set() for place in answers()}
    with torch.no_grad():
        for place, tensor in [(("x", 0), x), *slots(network, before, -1)]:
            kept = tensor.clone()
            tensor[1] += 0.5
            for target, value in answers().items():
                if (value[1] - value[0]).abs().max() > 1e-10:
                    ways[target].add(place)
            tensor.copy_(kept)
    return ways


def one_drawn_step(network: Any, cut: Cut) -> Ways:
    graph = Graph(network, cut)
    held = [(node, offset) for leaf in network.carry for node, offset in leaf]
    places = {("x", 0), *((node, offset - 1) for node, offset in held)}
    targets = {place: [place] for place in held} | {("y", 0): [(name, 0) for name in network.outputs]}
    if network.gates:
        targets[(network.gates, 0)] = [(network.gates, 0)]
    ways: Ways = {}
    for place, ends in targets.items():
        found = set().union(*(graph.sources(end, range(-9, 2), frozenset(places)) for end in ends))
        assert all(t >= 0 or (node, t) in places for node, t in found), f"{place} sees past the carry"
        ways[place] = found & places
    return ways


def test_gates_are_drawn_where_there_are_gates() -> None:
    for network in NETWORKS.values():
        assert (network.gates is not None) == hasattr(build(network), "gates")


@pytest.mark.parametrize("name", list(NETWORKS))
def test_pictures_are_those_the_script_draws(name: str) -> None:
    path = draw_models.TARGET / f"{name}.svg"
    assert path.read_text(encoding="utf-8") == draw_models.draw(NETWORKS[name]), "run python docs/draw_models.py"
    assert f"](images/models/{name}.svg)" in section(NETWORKS[name].spec["kind"])


def test_no_picture_is_left_over() -> None:
    assert {path.stem for path in draw_models.TARGET.iterdir()} == set(NETWORKS)
    assert {network.spec["kind"] for network in NETWORKS.values()} == set(ENCODERS)


# --- the text -------------------------------------------------------------------------------------------------------

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def evaluate(formula: str, **values: int) -> int:
    """``4H(I + H + 1)`` with numbers for the letters; what stands side by side is multiplied."""
    tokens = re.findall(r"\d+|[A-Za-z]|[()+-]", formula)
    assert "".join(tokens) == formula.replace(" ", "")
    for place in range(len(tokens) - 1, 0, -1):
        if re.fullmatch(r"\w+|\)", tokens[place - 1]) and re.fullmatch(r"\w+|\(", tokens[place]):
            tokens.insert(place, "*")

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return int(OPERATORS[type(node.op)](value(node.left), value(node.right)))
        if isinstance(node, ast.Name):
            return values[node.id]
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return node.value

    return value(ast.parse("".join(tokens), mode="eval").body)


def count(spec: Any, I: int) -> int:  # noqa: E741
    return sum(parameter.numel() for parameter in ENCODERS.build(spec, input_size=I).parameters())


OPTIONS: dict[str, dict[str, str]] = {
    "elman": {"O": "output_size"},
    "elman_1step": {"O": "output_size"},
    "jordan": {"O": "output_size"},
    "jordan_memory": {"O": "output_size"},
    "state_space": {"D": "layers"},
    "tdnn": {"N": "window", "D": "layers"},
    "narx": {"O": "output_size", "p": "input_delays", "q": "output_delays", "D": "layers"},
}
"""Letters of the formula -> options of the kind."""

SIZES = [(1, 1), (3, 7), (8, 5)]
VALUES = {"O": (1, 4), "D": (1, 3), "N": (1, 4), "p": (0, 3), "q": (1, 3)}


def parameters(kind: str) -> tuple[list[str], int]:
    """The formulas of a section, the general one first, and the number at I = H = 128."""
    (entry,) = re.findall(r"^- \*\*Parameters:\*\* (.*?)(?=^- )", section(kind), flags=re.MULTILINE | re.DOTALL)
    entry = " ".join(entry.split())
    (number,) = re.findall(r"([\d,]+) at I = H = 128", entry)
    return [formula for formula in re.findall(r"`([^`]*)`", entry) if "(" in formula], int(number.replace(",", ""))


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind not in LAYERED])
def test_parameter_formulas(kind: str) -> None:
    (general, default), number = parameters(kind)
    letters = OPTIONS.get(kind, {})
    for I, H in SIZES:  # noqa: E741
        assert evaluate(default, I=I, H=H) == count({"kind": kind, "hidden_size": H}, I)
        for chosen in product(*(VALUES[letter] for letter in letters)):
            spec = {"kind": kind, "hidden_size": H, **dict(zip(letters.values(), chosen, strict=True))}
            assert evaluate(general, I=I, H=H, **dict(zip(letters, chosen, strict=True))) == count(spec, I), spec
    assert number == count({"kind": kind, "hidden_size": 128}, 128)
    assert rows()[kind][1] == f"`{default}`"


@pytest.mark.parametrize(("I", "H"), [*SIZES, (128, 128)])
def test_parameter_formulas_of_layered_kinds(I: int, H: int) -> None:  # noqa: E741
    lstm = {"kind": "lstm", "hidden_size": H}
    both, layers, masked, dropped = (parameters(kind) for kind in ("birnn", "stack", "variational", "weight_dropout"))
    assert evaluate(both[0][0], I=I, H=H) == count({"kind": "birnn", "layer": lstm}, I)
    assert evaluate(masked[0][0], I=I, H=H) == count({"kind": "variational", "layer": lstm}, I)
    assert evaluate(dropped[0][0], I=I, H=H) == count({"kind": "weight_dropout", "layer": lstm}, I)
    for L in (1, 2, 3):
        assert evaluate(layers[0][0], I=I, H=H, L=L) == count({"kind": "stack", "layers": [lstm] * L}, I)
    if H == 128:
        assert both[1] == evaluate(both[0][0], I=I, H=H)
        assert masked[1] == evaluate(masked[0][0], I=I, H=H)
        assert dropped[1] == evaluate(dropped[0][0], I=I, H=H)
        assert layers[1] == evaluate(layers[0][0], I=I, H=H, L=2)


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_config_lines_build(kind: str) -> None:
    (line,) = re.findall(r"`(encoder: \{.*\})`", section(kind))
    spec = yaml.safe_load(line)["encoder"]
    assert spec["kind"] == kind
    ENCODERS.build(spec, input_size=16)


def told(builder: Any) -> str:
    """Docstrings of a class and of what it is derived from, without spaces."""
    return re.sub(r"\s", "", "".join(inspect.getdoc(base) or "" for base in inspect.getmro(builder)))


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind not in LAYERED])
def test_equations_are_those_of_the_docstring(kind: str) -> None:
    (block,) = re.findall(r"^```text\n(.*?)^```", section(kind), flags=re.MULTILINE | re.DOTALL)
    docstring = told(ENCODERS[kind].builder)
    for line in block.splitlines():
        assert re.sub(r"\s", "", line) in docstring, line


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_sections_and_table_name_every_kind(kind: str) -> None:
    assert set(rows()) == set(ENCODERS)
    for entry in ("Parameters", "Choose it", "Not for", "Config", "Source"):
        assert len(re.findall(rf"^- \*\*{entry}:?\*\*", section(kind), flags=re.MULTILINE)) == 1
    year, _, gated, _, both, _ = rows()[kind]
    assert year == "–" or year in section(kind)
    if kind not in LAYERED:
        encoder = ENCODERS.build({"kind": kind, "hidden_size": 2}, input_size=2)
        assert gated == ("yes" if hasattr(encoder, "gates") else "no")
        assert both == "no"
        assert isinstance(encoder, Recurrent)


def test_output_recurrent_is_elman_without_read_out() -> None:
    """As its section says."""
    x = torch.randn(2, 6, 3)
    elman, output_recurrent = (
        ENCODERS.build({"kind": kind, "hidden_size": 4}, input_size=3) for kind in ("elman", "output_recurrent")
    )
    output_recurrent.load_state_dict(elman.state_dict())
    torch.testing.assert_close(output_recurrent(x)[0], elman(x)[0])


@pytest.mark.parametrize("kind", ["tdnn", "mingru", "minlstm", "stack"])
def test_kinds_that_recurrent_dropout_is_refused_for(kind: str) -> None:
    """As the sections on `variational` and `weight_dropout` say; any other kind takes them."""
    layer = {"kind": "stack", "layers": [{"kind": "lstm", "hidden_size": 2}]} if kind == "stack" else {
        "kind": kind, "hidden_size": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="recurrent_dropout"):
        ENCODERS.build({"kind": "variational", "layer": layer, "recurrent_dropout": 0.1}, input_size=2)
    with pytest.raises(ValueError, match="weight_dropout"):
        ENCODERS.build({"kind": "weight_dropout", "layer": layer}, input_size=2)


def test_starts_are_as_told() -> None:
    for kind in set(ENCODERS) - LAYERED:
        encoder: nn.Module = ENCODERS.build({"kind": kind, "hidden_size": 4}, input_size=4)
        for name, parameter in encoder.named_parameters():
            if name == "W" and kind != "narx":
                for block in parameter.detach().chunk(len(parameter) // 4):
                    torch.testing.assert_close(block.T @ block, torch.eye(4))
            if name.startswith("b"):
                assert set(parameter.tolist()) in ({0.0}, {0.0, 1.0} if "lstm" in kind else {0.0})

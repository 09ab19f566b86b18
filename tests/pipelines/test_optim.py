"""The optimiser that moves only the rows a batch has used."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim import AdamW, SparseAdam

from pipelines.module import build_optimizer, running_average
from pipelines.optim import AdamWByRow, clip_norm_, clip_value_, total_norm
from seqapp.models.classifier import build_classifier
from seqapp.nn.recurrent import ENCODERS
from seqapp.nn.rows import take_rows
from seqapp.registry import Registry


def test_rows_move_as_in_sparse_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Embedding(6, 3), nn.Embedding(6, 3, sparse=True)
    theirs.load_state_dict(ours.state_dict())
    first = AdamWByRow([{"params": list(ours.parameters()), "by_row": True, "weight_decay": 0.0}], lr=0.1)
    second = SparseAdam(theirs.parameters(), lr=0.1)
    for step in range(12):
        ids = torch.tensor([step % 3, (2 * step) % 5])
        for table, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            (table(ids) * (step + 1)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_untouched_rows_keep_still_where_adam_moves_on() -> None:
    moved = {}
    for kind in (AdamW, AdamWByRow):
        table = nn.Embedding(4, 2)
        nn.init.ones_(table.weight)
        optimizer = kind([{"params": list(table.parameters()), "by_row": True, "weight_decay": 0.0}], lr=0.1)
        table(torch.tensor([2])).sum().backward()
        optimizer.step()
        after = table.weight.detach().clone()
        optimizer.zero_grad()
        table(torch.tensor([1])).sum().backward()
        optimizer.step()
        moved[kind] = float((table.weight[2] - after[2]).detach().abs().sum())
        assert torch.equal(table.weight[3], torch.ones(2))
    assert moved[AdamWByRow] == 0
    assert moved[AdamW] > 0.01


def test_sparse_gradients_move_rows_as_dense_ones_do() -> None:
    torch.manual_seed(0)
    tables = {kind: nn.ParameterList([torch.randn(6, 3), torch.randn(6)]) for kind in ("dense", "sparse", "peer")}
    for kind in ("sparse", "peer"):
        tables[kind].load_state_dict(tables["dense"].state_dict())
    dense = AdamWByRow([{"params": list(tables["dense"]), "by_row": True}], lr=0.1, weight_decay=0.0)
    sparse = AdamWByRow(tables["sparse"], lr=0.1, weight_decay=0.0)
    peer = SparseAdam(list(tables["peer"]), lr=0.1)
    for step in range(12):
        ids = torch.tensor([step % 3, (2 * step) % 5, step % 3])
        for kind, optimizer in (("dense", dense), ("sparse", sparse), ("peer", peer)):
            optimizer.zero_grad()
            matrix, vector = tables[kind]
            rows, values = (matrix[ids], vector[ids]) if kind == "dense" else (take_rows(t, ids) for t in tables[kind])
            ((rows * (step + 1)).square().sum() + values.exp().sum()).backward()
            optimizer.step()
    for kind in ("sparse", "peer"):
        for ours, theirs in zip(tables[kind], tables["dense"], strict=True):
            torch.testing.assert_close(ours, theirs)


def test_rows_without_gradient_keep_still_even_if_they_are_listed() -> None:
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = AdamWByRow([table], lr=0.1, weight_decay=0.5)
    for weights in ([1.0, 1.0], [1.0, 0.0]):
        optimizer.zero_grad()
        before = table.detach().clone()
        (take_rows(table, torch.tensor([1, 3])).sum(1) @ torch.tensor(weights)).backward()
        optimizer.step()
        moved = (table != before).any(1).tolist()
        assert moved == [False, weights[0] > 0, False, weights[1] > 0]
    optimizer.zero_grad()
    before = table.detach().clone()
    (0 * take_rows(table, torch.tensor([1, 3]))).sum().backward()
    optimizer.step()
    assert torch.equal(table, before)


def test_decay_is_for_rows_touched_and_apart_from_the_gradient() -> None:
    moved = {}
    for decay in (0.0, 0.5):
        table = nn.Parameter(torch.full((3, 2), 2.0))
        take_rows(table, torch.tensor([1])).sum().backward()
        AdamWByRow([table], lr=0.1, weight_decay=decay).step()
        moved[decay] = table.detach() - 2.0
    torch.testing.assert_close(moved[0.5] - moved[0.0], torch.tensor([[0.0, 0.0], [-0.1, -0.1], [0.0, 0.0]]))


def test_a_table_with_now_sparse_now_dense_gradients() -> None:
    table = nn.Parameter(torch.ones(4, 2))
    optimizer = AdamWByRow([table], lr=0.1, weight_decay=0.0)
    for take in (take_rows, lambda table, ids: table[ids], take_rows):
        optimizer.zero_grad()
        before = table.detach().clone()
        take(table, torch.tensor([2])).sum().backward()
        optimizer.step()
        assert (table < before).all(1).tolist() == [False, False, True, False]


def test_sparse_training_goes_on_from_a_saved_state() -> None:
    def run(optimizer: AdamWByRow, table: nn.Parameter, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            take_rows(table, torch.tensor([step % 3, 4])).square().sum().backward()
            optimizer.step()

    table = nn.Parameter(torch.arange(10.0).reshape(5, 2))
    optimizer = AdamWByRow([table], lr=0.1)
    run(optimizer, table, range(4))
    again = nn.Parameter(table.detach().clone())
    resumed = AdamWByRow([again], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, table, range(4, 9))
    run(resumed, again, range(4, 9))
    assert torch.equal(table, again)


@pytest.mark.parametrize("most", [0.5, 1e6])
def test_norm_and_clipping_are_those_of_dense_gradients(most: float) -> None:
    torch.manual_seed(0)
    table, vector, layer, idle = (nn.Parameter(torch.randn(*shape)) for shape in ((6, 3), (6,), (3, 2), (2,)))
    parameters, ids = [table, vector, layer, idle], torch.tensor([1, 4, 1])

    def gradients(take: Any) -> None:
        for parameter in parameters:
            parameter.grad = None
        score = (take(table, ids) @ layer).square().sum() + take(vector, ids).exp().sum()
        (score + take(table, torch.tensor([4, 5])).exp().sum()).backward()

    gradients(lambda table, ids: table[ids])
    expected = torch.nn.utils.clip_grad_norm_(parameters, most)
    clipped = [p.grad.clone() if p.grad is not None else None for p in parameters]
    gradients(take_rows)
    torch.testing.assert_close(total_norm(parameters), expected)
    torch.testing.assert_close(clip_norm_(parameters, most), expected)
    for parameter, wanted in zip(parameters, clipped, strict=True):
        assert (parameter.grad is None) == (wanted is None)
        if parameter.grad is not None and wanted is not None:
            torch.testing.assert_close(parameter.grad.to_dense(), wanted)
    assert total_norm([idle]) == 0
    assert clip_norm_([idle], 1.0) == 0


def test_clipping_by_value_is_after_summing_what_is_listed_twice() -> None:
    table = nn.Parameter(torch.zeros(4))
    (take_rows(table, torch.tensor([1, 1, 3])) @ torch.tensor([3.0, -2.5, -9.0])).backward()
    clip_value_([table], 2.0)
    assert table.grad is not None
    assert table.grad.to_dense().tolist() == [0, 0.5, 0, -2]


def test_other_groups_are_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    first, second = (AdamWByRow(ours.parameters(), lr=0.1), AdamW(theirs.parameters(), lr=0.1))
    for step in range(5):
        x = torch.randn(4, 3)
        for layer, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            (layer(x) * (step + 1)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_decay_spares_biases_and_tables() -> None:
    model = build_classifier(20, 2, encoder={"kind": "lstm", "hidden_size": 4}, embedding_size=6, bag_ngrams=2)
    groups = build_optimizer(model, 1e-3, 0.5).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    by_row = {id(p) for group in groups if group.get("by_row") for p in group["params"]}
    for name, parameter in model.named_parameters():
        table = name in ("embedding.weight", "bag.weight")
        assert (id(parameter) in by_row) == table, name
        assert (id(parameter) in decayed) == (parameter.dim() >= 2 and not table), name
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def spec_of(kind: str, family: Registry[Any]) -> dict[str, Any]:
    """The smallest spec of a kind: what it needs and no more."""
    spec: dict[str, Any] = {"kind": kind}
    for name, option in family[kind].options.items():
        if option.required:
            layers = any(isinstance(part, Registry) for part in _parts(option.annotation))
            listed = "list" in str(option.annotation)
            inner: Any = {"kind": "lstm", "hidden_size": 4} if layers else 4
            spec[name] = [inner, inner] if listed else inner
    return spec


def _parts(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [*arguments, *(part for argument in arguments for part in _parts(argument))]


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_decay_is_for_the_weights_of_every_network(kind: str) -> None:
    layer = ENCODERS.build(spec_of(kind, ENCODERS), input_size=4)
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "encoder": layer,
                           "scale": nn.GroupNorm(2, 4), "head": nn.Linear(layer.output_size, 2)})  # fmt: skip
    groups = build_optimizer(model, 1e-3, 0.5).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    names = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(names)
    for name, parameter in names.items():
        weight = parameter.dim() >= 2 and name != "embedding.weight"
        assert (id(parameter) in decayed) == weight, name
        last = name.rpartition(".")[2]
        # The shape tells weights from biases only as long as no bias has two dimensions.
        assert not (weight and (last.startswith("b") or "bias" in last or "norm" in name)), name
    inside = [name for name, parameter in layer.named_parameters() if id(parameter) in decayed]
    assert inside, "a network without a single weight that decays"


def test_running_average_rises_to_its_decay() -> None:
    update = running_average(0.5)
    average, weight = [torch.zeros(1)], [torch.ones(1)]
    update(average, weight, 0)
    assert average[0].item() == torch.tensor(0.9).item()
    for count in range(1, 200):
        update(average, weight, count)
    average = [torch.zeros(1)]
    update(average, weight, 1000)
    assert average[0].item() == 0.5

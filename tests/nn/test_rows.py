"""Taking rows: the same values and gradients as indexing, held for the rows taken only."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from seqapp.nn.rows import take_rows


@given(ids=st.lists(st.integers(0, 6), max_size=12), width=st.sampled_from([(), (3,)]))
def test_values_and_gradient_are_those_of_indexing(ids: list[int], width: tuple[int, ...]) -> None:
    table = torch.randn(7, *width, dtype=torch.float64).requires_grad_()
    where = torch.tensor(ids, dtype=torch.long)
    weights = torch.randn(len(ids), *width, dtype=torch.float64)
    (expected,) = torch.autograd.grad((table[where].square() * weights).sum(), table)
    taken = take_rows(table, where)
    assert_close(taken, table[where])
    (taken.square() * weights).sum().backward()
    assert table.grad is not None
    gradient = table.grad.coalesce()
    assert gradient.indices()[0].tolist() == sorted(set(ids))
    assert_close(gradient.to_dense(), expected)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0)])
def test_ids_of_any_shape(shape: tuple[int, ...]) -> None:
    table = nn.Parameter(torch.randn(5, 2))
    ids = torch.randint(0, 5, shape)
    taken = take_rows(table, ids)
    assert taken.shape == (*shape, 2)
    taken.sum().backward()
    assert table.grad is not None
    counts = torch.bincount(ids.flatten(), minlength=5)
    assert_close(table.grad.to_dense(), counts[:, None].expand(5, 2).float())


def test_uses_of_one_table_add_up() -> None:
    table = nn.Parameter(torch.randn(6, 2))
    first, second = torch.tensor([[0, 1], [1, 4]]), torch.tensor([4, 4, 5])

    def total(take: object) -> Tensor:
        rows = take_rows if take is take_rows else lambda table, ids: table[ids]
        return (rows(table, first).sum(1) @ rows(table, second).T).square().sum()

    total(take_rows).backward()
    assert table.grad is not None
    ours = table.grad.coalesce()
    (expected,) = torch.autograd.grad(total(None), table)
    assert ours.indices()[0].tolist() == [0, 1, 4, 5]
    assert_close(ours.to_dense(), expected)


def test_without_gradient_it_is_a_plain_look_up() -> None:
    table = nn.Parameter(torch.randn(6, 2))
    with torch.no_grad():
        assert not take_rows(table, torch.tensor([1])).requires_grad
    frozen = table.detach()
    assert not take_rows(frozen, torch.tensor([1])).requires_grad


def test_gradient_keeps_the_type_of_the_table_under_autocast() -> None:
    table, x = nn.Parameter(torch.randn(6, 4)), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (x @ take_rows(table, torch.tensor([1, 2])).T).float().sum().backward()
    assert table.grad is not None
    assert table.grad.dtype == torch.float32

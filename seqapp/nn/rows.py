"""Rows of a large table, with gradients for the rows taken and no others.

V rows in the table, I their size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding


class _TakeRows(Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        return _take(table, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        values = gradient.reshape(-1, *ctx.shape[1:])
        return torch.sparse_coo_tensor(ids.reshape(1, -1), values, ctx.shape, check_invariants=False), None


def _take(table: Tensor, ids: Tensor) -> Tensor:
    # `embedding` copies rows several times faster than indexing does.
    return embedding(ids, table) if table.dim() == 2 else table[ids]


def take_rows(table: Tensor, ids: Tensor) -> Tensor:
    """``table[ids]``; its backward pass costs what the rows taken cost, not what the table costs.

    The gradient of the table is a sparse tensor (COO, over the first dimension) that lists the rows in ``ids``;
    coalesced, it holds each of them once and equals the dense gradient. Uses of one table add up.

    Args:
        table: (V,) or (V, I).
        ids: integers in [0, V), of any shape.

    Returns:
        (\\*ids,) or (\\*ids, I).
    """
    if torch.is_grad_enabled() and table.requires_grad:
        taken: Tensor = _TakeRows.apply(table, ids)  # type: ignore[no-untyped-call]
        return taken
    return _take(table, ids)

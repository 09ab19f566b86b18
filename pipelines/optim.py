"""The optimiser: AdamW, and for tables of embeddings Adam that touches only the rows a batch has used.

V rows of a table, M of them touched by a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW


class AdamWByRow(AdamW):
    """AdamW; by row, a row whose gradient is zero keeps its weights and its running means.

    By row are the tables in groups with ``by_row`` set, and any table whose gradient is sparse; with a sparse gradient
    a step costs what the M rows touched cost, whatever V is. Weight decay, too, is for rows touched.

    Plain Adam moves a rare word's vector on for many steps after the one step that saw it, by about
    (1 - beta1) / sqrt(1 - beta2) / (1 - beta1) = 32 learning rates at the usual betas, so rare words and n-grams are
    learned by heart. By row it moves once per step that saw it. The rule is that of ``torch.optim.SparseAdam``.
    Sources: Kingma & Ba 2015; Loshchilov & Hutter 2019.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` computes the gradients first if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and (table.grad.is_sparse or group.get("by_row")):
                    self._step_rows(table, group)
                    table.grad = None  # AdamW passes over what has no gradient
        super().step()
        return loss

    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] += 1
        rows, g = _touched(table)
        (beta1, beta2), count, rate = group["betas"], float(state["step"]), group["lr"]
        # These copy rows several times faster than indexing with brackets does.
        mean = state["exp_avg"].index_select(0, rows).lerp_(g, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        change = mean.div_(square.div_(1 - beta2**count).sqrt_().add_(group["eps"])).mul_(-rate / (1 - beta1**count))
        if group["weight_decay"]:
            change.add_(table.index_select(0, rows), alpha=-rate * group["weight_decay"])
        table.index_add_(0, rows, change)


def _touched(table: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,) of the gradient that are not zero, each once, and what is in them, (M, ...)."""
    gradient: Any = table.grad
    if not gradient.is_sparse:
        rows = _not_zero(gradient)
        return rows, gradient.index_select(0, rows)
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    used = _not_zero(values)
    return (rows, values) if len(used) == len(rows) else (rows[used], values[used])


def _not_zero(values: Tensor) -> Tensor:
    """Places in the first dimension where any value is not zero."""
    return values[:, None].flatten(1).abs().amax(1).nonzero()[:, 0]


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, dense and sparse; 0 without any."""
    return torch.nn.utils.get_total_norm(_values(parameters))


def clip_norm_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients, dense and sparse, so that their norm together is at most ``max_norm``.

    Returns:
        The norm before.
    """
    gradients = _values(parameters)
    norm = torch.nn.utils.get_total_norm(gradients)
    if gradients:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def clip_value_(parameters: Iterable[Tensor], most: float) -> None:
    """Bring every number of the gradients, dense and sparse, into [-most, most]."""
    for values in _values(parameters):
        values.clamp_(-most, most)


def _values(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The numbers in every gradient, shared with it; of a row that is listed twice the sum."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    return values

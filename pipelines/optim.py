"""The optimiser: AdamW, and for tables of embeddings Adam that touches only the rows a batch has used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW


class AdamWByRow(AdamW):
    """AdamW; in groups with ``by_row`` set, a row whose gradient is zero keeps its weights and its running means.

    Plain Adam moves a rare word's vector on for many steps after the one step that saw it, by about
    (1 - beta1) / sqrt(1 - beta2) / (1 - beta1) = 32 learning rates at the usual betas, so rare words and n-grams are
    learned by heart. By row it moves once per step that saw it. The rule is that of ``torch.optim.SparseAdam``, on
    dense gradients, so that clipping and mixed precision stay as they are. Sources: Kingma & Ba 2015; Loshchilov &
    Hutter 2019.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` computes the gradients first if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group.get("by_row"):
                for table in group["params"]:
                    if table.grad is not None:
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
        gradient: Any = table.grad
        rows = gradient.any(1).nonzero().squeeze(1)
        g, (beta1, beta2), count = gradient[rows], group["betas"], float(state["step"])
        mean = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        size = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
        table[rows] -= group["lr"] / (1 - beta1**count) * mean / size

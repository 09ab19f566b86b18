"""Temperature scaling: one number, fitted on validation answers, so that a model is as sure as it is right.

N answers, C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from scipy.optimize import brentq  # type: ignore[import-untyped]
from torch import Tensor, nn

from pipelines.data import Data
from seqapp.calibration import Reliability
from seqapp.errors import SeqappError
from seqapp.tasks import Task

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.01, 100.0
"""Bounds of T."""
FEWEST = 10
"""Wrong answers below which no T is fitted: fewer than ten events for a fitted number tell too little (Peduzzi et al.
1996). Where all answers are right, the T of least nll is 0, and the model would be sure of everything."""

Answers = Sequence[tuple[Tensor, Tensor]]
"""Logits (N, C) and true classes (N,), batch by batch."""


@dataclass(frozen=True)
class Calibration:
    """What one temperature makes of the probabilities.

    Attributes:
        temperature: T; None where too little is known to fit one, so that the answers are those of the logits.
        note: what a person should know of the fit; empty if nothing.
        before: split -> reliability of the logits as they are.
        after: split -> that of the answers.
    """

    temperature: float | None
    note: str
    before: Mapping[str, Reliability]
    after: Mapping[str, Reliability]

    def figures(self) -> dict[str, float]:
        """``temperature``, and ``SPLIT_SCORE_before`` and ``..._after`` for the ece, the brier score and the nll."""
        found = {"temperature": self.temperature or 1.0}
        for when, parts in (("before", self.before), ("after", self.after)):
            for split, part in parts.items():
                found |= {f"{split}_{score}_{when}": value for score, value in part.scores().items()}
        return found


def calibrate(task: Task[Any, Any], model: nn.Module, data: Data, items: Mapping[str, Any]) -> Calibration | None:
    """Fit the temperature with which ``task`` answers from here on, and measure what it does.

    Args:
        task: prepared.
        model: trained, built by the task.
        data: of the items.
        items: split -> encoded items; on "validation" the temperature is fitted.

    Returns:
        None for a task whose answers are no probabilities of classes.

    Raises:
        SeqappError: if a logit is not finite.
    """
    if not task.calibrates:
        return None
    found = {split: answers(task, model, data, part) for split, part in items.items()}
    logits, targets = (torch.cat(parts) for parts in zip(*found["validation"], strict=True))
    task.temperature, note = fit_temperature(logits, targets)
    told = "not fitted" if task.temperature is None else f"{task.temperature:.4g}"
    log.info("temperature of the probabilities: %s", "; ".join(filter(None, (told, note))))
    before = {split: reliability(parts) for split, parts in found.items()}
    after = {split: reliability(parts, task.temperature) for split, parts in found.items()}
    return Calibration(task.temperature, note, before, after)


def fit_temperature(logits: Tensor, targets: Tensor) -> tuple[float | None, str]:
    """The T at which softmax(logits / T) has the least nll (Guo et al. 2017, section 4.2), in float64.

    The nll is convex in b = 1 / T, and its slope is the mean over answers of E_p[z] - z_true, z being the logits and
    p = softmax(b z); so the root of the slope is the one minimum. It lies at b <= 0 if the logits tell nothing.

    Args:
        logits: (N, C).
        targets: (N,) true classes.

    Returns:
        T, or None where fewer than :data:`FEWEST` answers are wrong; and a note, which is empty where T lies within its
        bounds.

    Raises:
        SeqappError: if there is no answer, or a logit is not finite.
    """
    finite = logits.isfinite().all(1)
    if not len(logits) or not bool(finite.all()):
        what = f"the logits of {int((~finite).sum())} of {len(logits)} validation answers are not finite"
        raise SeqappError(f"calibration: {what}; one or more answers, all finite, fit; train.calibrate=false leaves "
                          "probabilities as they are")  # fmt: skip
    z = logits.double()
    true = z.gather(1, targets[:, None])[:, 0]
    wrong = int((z.amax(1) > true).sum())
    if wrong < FEWEST:
        return None, (f"{wrong} of {len(z):,} validation answers are wrong; {FEWEST} or more are needed to tell how "
                      "often errors are to be expected")  # fmt: skip

    def slope(log_temperature: float) -> float:
        p = (z * math.exp(-log_temperature)).softmax(1)
        return float(((p * z).sum(1) - true).mean())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    # The slope in 1 / T falls as T rises.
    if slope(high) >= 0:
        return HIGHEST, f"stopped at the bound {HIGHEST:g}, since the logits hardly tell the classes apart"
    if slope(low) <= 0:
        return LOWEST, f"stopped at the bound {LOWEST:g}, since the logits are nearly equal"
    return math.exp(brentq(slope, low, high)), ""


def answers(task: Task[Any, Any], model: nn.Module, data: Data, items: Any) -> Answers:
    """What ``model`` says on encoded ``items``, and what is true.

    Args:
        task: prepared; one that calibrates.
        model: built by the task.
        data: of the items.
        items: encoded by the task.
    """
    model.eval()
    with torch.inference_mode():
        return [task.logits(model, batch) for batch in data.evaluation_dataloader(items)]


def reliability(parts: Answers, temperature: float | None = None) -> Reliability:
    """The reliability of all answers together.

    Args:
        parts: at least one batch.
        temperature: T; None takes the logits as they are.
    """
    return reduce(add, (Reliability.of(logits, targets, temperature or 1.0) for logits, targets in parts))

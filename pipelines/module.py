"""One LightningModule for every task: the task brings the loss and the metrics, this brings the optimiser."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipelines.distributed import ALONE, Endings, Processes, exclude
from pipelines.figures import figure
from pipelines.optim import AdamWByRow, clip_norm_, clip_value_, total_norm
from pipelines.stopping import how_on, note
from seqapp import metrics
from seqapp.data.batching import Idle
from seqapp.errors import SeqappError, Stopped
from seqapp.metrics import Metric
from seqapp.nn.heads import Head
from seqapp.nn.ngrams import NgramBag
from seqapp.nn.recurrent import Carry, NotFinite, map_carry
from seqapp.tasks import Task

ParamList = tuple[Tensor, ...] | list[Tensor]

log = logging.getLogger(__name__)


class Reader:
    """The loss of batches in order, the state carried from each to the next where they are pieces of rows.

    Args:
        task: computes the loss.
        model: built by the task.
        carried: batches are pieces; the carry goes on from one to the next, its gradient does not.
    """

    def __init__(self, task: Task[Any, Any], model: nn.Module, *, carried: bool) -> None:
        self.task, self.model, self.carried = task, model, carried
        self.carry: Carry | None = None

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Metric]]:
        """The mean loss of a batch, and its metrics."""
        if not self.carried:
            return self.task.loss(self.model, batch)
        rows = len(batch.lengths)
        carry = None if batch.fresh else map_carry(lambda leaf: leaf[:rows], self.carry)
        loss, new, carry = self.task.loss_carried(self.model, batch, carry)
        self.carry = map_carry(lambda leaf: leaf.detach(), carry)
        return loss, new


class Learner(pl.LightningModule):
    """Fits ``model`` to ``task``.

    Args:
        task: prepared.
        model: built by the task.
        learning_rate: the highest rate of the schedule.
        schedule: "constant", "cosine" or "linear", after the warm-up.
        warmup: share of all steps in which the rate rises from 0.
        weight_decay: decoupled decay of weight matrices.
        seed: of the dropout; each epoch starts from a state that depends on seed and epoch alone, so that an epoch
            run again after a kill is the same epoch.
        truncated: batches are pieces that :meth:`Task.chunks` made, in order; the carry goes from each to the next, its
            gradient does not.
        processes: those that train together, each with its share of the rows of every batch.

    A model with a float attribute ``progress`` finds there, before each training step, the share of all training steps
    that are done, in [0, 1].
    """

    def __init__(
        self,
        task: Task[Any, Any],
        model: nn.Module,
        *,
        learning_rate: float,
        schedule: str,
        warmup: float,
        weight_decay: float,
        seed: int,
        truncated: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.task, self.model = task, model
        self.learning_rate, self.schedule, self.warmup, self.weight_decay = (
            learning_rate, schedule, warmup, weight_decay,
        )  # fmt: skip
        self.seed, self.truncated = seed, truncated
        self.processes = processes
        self._tables = tables_of(model)
        if processes.several:
            exclude(self, self._tables)
        self._steps = 1
        self._totals: dict[str, Metric] = {}
        self._validation: dict[str, Metric] = {}
        self._tokens = 0
        self._seconds = 0.0
        self._norms: list[Tensor] = []

    def on_train_epoch_start(self) -> None:
        note(str(self._stopped()))
        self._reader = Reader(self.task, self.model, carried=self.truncated)
        batches = self.trainer.train_dataloader or ()
        self.task.begin_epoch(self.model, (batch for batch in batches if not isinstance(batch, Idle)))
        self._totals, self._tokens, self._norms = {}, 0, []
        self._seconds = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        idle = isinstance(batch, Idle)
        self._learns = not idle and (not self.truncated or self.task.learns(batch))
        if self.processes.several:
            weight = batch.weight if idle else self.task.weight(batch)
            total, learning, stopping = self.processes.add(weight, self._learns, self._stopping())
            if stopping:
                raise self._stopped()
            self._learns = learning > 0
            # DDP averages over processes what are means over rows, tokens or answers; each of those counts the same.
            self._share = self.processes.world * weight / total if total else 0.0
        if batch_index == 0:
            # Not earlier: a resumed epoch makes its loader, which draws a number, at another time than a first one.
            torch.manual_seed(self.seed * 1_000_003 + self.current_epoch + 15_485_863 * self.processes.rank)
        if isinstance(getattr(self.model, "progress", None), float):
            self.model.progress = min(1.0, self.global_step / self._steps)  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        if isinstance(batch, Idle):
            return 0.0 * self._any_weights().sum()
        with self._diverging(batch_index):
            loss, new = self._reader(batch)
            if not bool(loss.isfinite()):
                raise NotFinite(f"the loss is {loss.item()}")
        self._totals = metrics.add(self._totals, new)
        self._tokens += int(batch.lengths.sum())
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss * self._share if self.processes.several else loss

    def _any_weights(self) -> nn.Parameter:
        """Some that DDP looks after, for a loss that says nothing."""
        tables = {id(table) for table in self._tables}
        return next(p for p in self.model.parameters() if p.requires_grad and id(p) not in tables)

    def _stopping(self) -> bool:
        return any(callback.stopping for callback in self.trainer.callbacks if isinstance(callback, Endings))  # type: ignore[attr-defined]

    def _stopped(self) -> Stopped:
        return Stopped(f"stopped in epoch {self.current_epoch + 1}; {how_on(self.current_epoch)}")

    def on_after_backward(self) -> None:
        if self.processes.several:
            self.processes.average(self._tables)

    @contextmanager
    def _diverging(self, batch_index: int) -> Iterator[None]:
        """Say where a number ran away and what would help."""
        try:
            yield
        except NotFinite as error:
            fits = (
                "a lower train.learning_rate or train.clip_norm fits"
                if self.global_step
                else "nothing has been learned yet, so shorter rows, smaller numbers in the data, or a network that "
                "does not grow its state, would fit"
            )
            raise SeqappError(f"in epoch {self.current_epoch + 1}, step {batch_index + 1}: {error}; {fits}") from None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        # Without an answer there is no gradient, and neither momentum nor decay must move the weights.
        if self._learns or optimizer_closure is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:
            optimizer_closure()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self._norms.append(total_norm(self.model.parameters()).double())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning's own way takes no sparse gradients.
        if gradient_clip_val is None:
            return
        if gradient_clip_algorithm == "value":
            clip_value_(self.model.parameters(), gradient_clip_val)
        else:
            clip_norm_(self.model.parameters(), gradient_clip_val)

    def on_train_epoch_end(self) -> None:
        # Validation runs inside the epoch and has read the clock already; see on_validation_start.
        self._totals = self.processes.add_metrics(self._totals)
        (self._tokens,) = map(int, self.processes.add(self._tokens))
        scores = {f"train/{name}": value for name, value in metrics.read(self._totals).items()}
        scores["train/tokens_per_second"] = self._tokens / self._seconds
        scores["train/seconds"] = self._seconds
        by_norm = self.trainer.gradient_clip_algorithm != "value"
        scores |= gradient_scores(self._norms, self.trainer.gradient_clip_val if by_norm else None)
        scores["train/learning_rate"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self._log(scores)
        # What callbacks log through Lightning at this moment gets the epoch as its step, too.
        self.log("step", float(self.current_epoch), batch_size=1)
        trained = metrics.read(self._totals)
        told = "nll" if "nll" in trained else self.task.selection[0]
        parts = [f"train {told} {figure(trained[told])}"] if told in trained else []
        parts += [f"validation {name} {figure(value)}" for name, value in metrics.read(self._validation).items()]
        log.info(
            "epoch %d/%d: %s, %s tokens/s",
            self.current_epoch + 1, self.trainer.max_epochs or 0, ", ".join(parts),
            f"{scores['train/tokens_per_second']:,.0f}",
        )  # fmt: skip

    def on_validation_start(self) -> None:
        self._seconds = time.perf_counter() - self._seconds
        self._validation = {}
        self._reader = Reader(self.task, self.model, carried=self.task.streams)

    def validation_step(self, batch: Any, batch_index: int) -> None:
        if self.processes.several and self._stopping():
            raise self._stopped()
        if isinstance(batch, Idle):
            return
        with self._diverging(batch_index):
            _, new = self._reader(batch)
        self._validation = metrics.add(self._validation, {**new, **self.task.judge(self.model, batch)})

    def on_validation_epoch_end(self) -> None:
        name, _ = self.task.selection
        self._validation = self.processes.add_metrics(self._validation)
        scores = metrics.read(self._validation)
        named = {f"validation/{key}": value for key, value in scores.items()}
        self._log(named)
        # Callbacks that choose an epoch or stop early read these.
        self.log_dict(named, batch_size=1, logger=False)
        self.log(name, scores[name], prog_bar=True, logger=False)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.learning_rate, self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        self._steps = max(1, total)
        scheduler = LambdaLR(optimizer, lambda step: rate_at(step, total, self.schedule, self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _log(self, scores: dict[str, float]) -> None:
        # MLflow's step is the epoch, so that curves of runs with other batch sizes lie over each other. Not through
        # log_dict, which rounds to float32.
        for logger in self.loggers:
            logger.log_metrics(scores, step=self.current_epoch)


def gradient_scores(norms: Sequence[Tensor], clip_norm: float | None) -> dict[str, float]:
    """Mean and largest norm of the gradient over the steps of an epoch, and the share of steps that were clipped.

    Args:
        norms: () each, before clipping.
        clip_norm: the largest norm that is not clipped; None where the norm does not decide.
    """
    every = torch.stack(list(norms)) if norms else torch.full((1,), math.nan)
    found = {"train/gradient_norm": float(every.mean()), "train/largest_gradient_norm": float(every.max())}
    if clip_norm is not None:
        found["train/clipped_share"] = float((every > clip_norm).double().mean())
    return found


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> AdamWByRow:
    """AdamW over three groups: matrices, which decay; biases and norms, which do not; tables, by row.

    Tables are those of embeddings and bags, and what a head with sparse gradients owns.
    """
    tables = tables_of(model)
    rest = [p for p in model.parameters() if all(p is not table for table in tables)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        {"params": tables, "weight_decay": 0.0, "by_row": True, "betas": (0.9, 0.99)},
    ]
    return AdamWByRow([group for group in groups if group["params"]], lr=learning_rate)


def tables_of(model: nn.Module) -> list[nn.Parameter]:
    """Tables of embeddings and bags, and what a head with sparse gradients owns, each once."""
    tables: list[Any] = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | NgramBag)]
    heads = [m for m in model.modules() if isinstance(m, Head) and m.sparse]
    tables += [p for head in heads for p in head.parameters()]
    return list(dict.fromkeys(tables))


def rate_at(step: int, total: int, schedule: str, warmup: float) -> float:
    """The learning rate at ``step`` of ``total`` as a share of the highest: a linear rise, then the schedule."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    progress = min(1.0, (step - rise) / max(1.0, total - rise))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if schedule == "linear" else 1.0


def running_average(decay: float) -> Callable[[ParamList, ParamList, Tensor | int], None]:
    """An update for exponential averaging whose decay rises to ``decay`` as min(decay, (1 + n) / (10 + n)).

    The rise keeps the first averages from being mostly the untrained start. Source of the rule: TensorFlow's
    ExponentialMovingAverage; of averaging: Polyak & Juditsky 1992.
    """

    @torch.no_grad()
    def update(averages: ParamList, weights: ParamList, count: Tensor | int) -> None:
        kept = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(list(averages), list(weights), 1 - kept)

    return update

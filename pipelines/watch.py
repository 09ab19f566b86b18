"""What a person watches while a network learns, once an epoch: its recurrent matrices, its gates, and what it says."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar
from torch import nn

from pipelines.figures import attention_matrix
from pipelines.outbox import RunLogger
from seqapp.data.streams import Pieces, Span
from seqapp.diagnostics import (
    LARGEST_BLOCK,
    Reading,
    gate_saturation,
    largest_singular_value,
    record,
    recurrent_blocks,
    spectral_radius,
)
from seqapp.nn.recurrent import NotFinite
from seqapp.tasks import Task

log = logging.getLogger(__name__)

PREFIX = "recurrent/"
RADIUS, SINGULAR = "spectral_radius", "largest_singular_value"
GATES = "gates/"
ROWS, STEPS = 8, 64
"""How many validation rows gates are watched on, and how many positions of each."""


class Bar(RichProgressBar):
    """Lightning's progress bar, which counts epochs as the log does, and has nothing else that the log has not."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))


class RecurrentWatch(Callback):
    """Logs ``recurrent/<layer>.<gate>/spectral_radius`` and ``.../largest_singular_value`` after every epoch.

    They are those of the weights being trained, not of their running average. Saxe et al. 2014; Pascanu et al. 2013.

    Args:
        largest: blocks with more rows are left out, since their eigenvalues take seconds.
    """

    def __init__(self, largest: int = LARGEST_BLOCK) -> None:
        self.largest = largest

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name, block in recurrent_blocks(_model(pl_module)).items():
            if len(block) > self.largest:
                log.info("%s has %d rows; its eigenvalues are not watched, only those up to %d are",
                         name, len(block), self.largest)  # fmt: skip

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            _log_metrics(trainer, measure(_model(pl_module), self.largest))


class GateWatch(Callback):
    """Logs ``gates/<layer>.<gate>/left_saturated``, ``.../right_saturated`` and ``.../mean`` after every epoch.

    They are the shares of units and positions at which a gate is below 0.1 and above 0.9 (Karpathy et al. 2015), and
    its mean, over the same few validation rows each time, of the weights being trained. Networks without gates, and
    layers that a decoder only steps, have none.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._batch = few(pl_module.task, trainer.datamodule.validation_items)  # type: ignore[arg-type, attr-defined]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            batch = pl_module.transfer_batch_to_device(self._batch, pl_module.device, 0)
            _log_metrics(trainer, gates(pl_module.task, _model(pl_module), batch))  # type: ignore[arg-type]


class Samples(Callback):
    """Logs what the model says before training and after each epoch, as ``samples/epoch-003.txt``.

    What it looks at is logged beside it, as pictures such as ``attention/1/epoch-003.png``.

    Stands after a callback that averages weights, whose average then speaks.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not on_fit_start, when a resumed run still counts its epochs from 0.
        if trainer.current_epoch == 0:
            _log_sample(trainer, pl_module, 0)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _log_sample(trainer, pl_module, trainer.current_epoch + 1)


def _log_sample(trainer: pl.Trainer, module: Any, epoch: int) -> None:
    training = module.model.training
    module.model.eval()
    deterministic = torch.are_deterministic_algorithms_enabled()
    # What sampling sums up in order has no deterministic kernel on a GPU, and moves no weight.
    torch.use_deterministic_algorithms(False)
    items = trainer.datamodule.validation_items  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        text = module.task.sample(module.model, items)
        matrices = module.task.matrices(module.model, items)
    torch.use_deterministic_algorithms(deterministic)
    module.model.train(training)
    for logger in trainer.loggers:
        if not isinstance(logger, RunLogger):
            continue
        if text is not None:
            logger.experiment.log_text(logger.run_id, text, f"samples/epoch-{epoch:03}.txt")
        for name, matrix in matrices.items():
            picture = attention_matrix(matrix.values, matrix.columns, matrix.rows, matrix.title)
            logger.experiment.log_figure(logger.run_id, picture, f"{name}/epoch-{epoch:03}.png")


def few(task: Task[Any, Any], items: Any) -> Any:
    """A batch of a few items, always the same, or of a few places in a stream.

    Args:
        task: prepared.
        items: encoded by it.
    """
    if not task.streams:
        chosen = random.Random(0).sample(range(len(items)), min(ROWS, len(items)))
        return task.collate([items[index] for index in chosen])
    starts = range(0, len(items), max(STEPS, -(-len(items) // ROWS)))
    spans = [Span(start, min(start + STEPS, len(items))) for start in starts]
    return next(iter(Pieces(items, spans, steps=STEPS)))


def gates(task: Task[Any, Any], model: nn.Module, batch: Any) -> dict[str, float]:
    """Metric name -> value, of every gate of ``model`` in the first positions of a batch; draws no random number.

    Args:
        task: reads the batch.
        model: built by the task; left as it is.
        batch: on the model's device.
    """

    def read() -> object:
        return task.loss_carried(model, batch, None) if task.streams else task.loss(model, batch)

    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            return _saturations(record(model, read))
    except NotFinite:
        return {}  # training says so where it goes on, with what would help
    finally:
        model.train(training)


def _saturations(readings: Mapping[str, Reading]) -> dict[str, float]:
    found: dict[str, float] = {}
    seen: list[str] = []
    for name, reading in readings.items():
        # A layer that only changes the weights or the input of the one inside it has the same gates.
        if any(name.startswith(f"{outer}.") for outer in seen):
            continue
        x = reading.x[:, :STEPS]
        lengths = torch.full((len(x),), x.shape[1], device=x.device) if reading.lengths is None else reading.lengths
        for gate, saturation in gate_saturation(reading.layer, x, lengths.clamp(max=STEPS), reading.carry).items():
            seen.append(name)
            for what, values in (("left_saturated", saturation.left), ("right_saturated", saturation.right),
                                 ("mean", saturation.mean)):  # fmt: skip
                found[f"{GATES}{name}.{gate}/{what}"] = float(values.mean())
    return found


def measure(model: nn.Module, largest: int = LARGEST_BLOCK) -> dict[str, float]:
    """Metric name -> value, of every recurrent matrix of ``model`` with at most ``largest`` rows."""
    found = {}
    for name, block in recurrent_blocks(model).items():
        if len(block) <= largest and bool(block.isfinite().all()):
            block = block.float()
            found[f"{PREFIX}{name}/{RADIUS}"] = float(spectral_radius(block))
            found[f"{PREFIX}{name}/{SINGULAR}"] = float(largest_singular_value(block))
    return found


def _log_metrics(trainer: pl.Trainer, found: Mapping[str, float]) -> None:
    # Not through log_dict, which rounds to float32, and where there are several processes waits for all of them.
    for logger in trainer.loggers:
        logger.log_metrics(dict(found), step=trainer.current_epoch)


def _model(module: Any) -> nn.Module:
    model: nn.Module = module.model
    return model

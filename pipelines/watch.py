"""What a person watches while a network learns, once an epoch: its recurrent matrices, and what it says."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import MLFlowLogger
from torch import nn

from pipelines.figures import attention_matrix
from seqapp.diagnostics import LARGEST_BLOCK, largest_singular_value, recurrent_blocks, spectral_radius

log = logging.getLogger(__name__)

PREFIX = "recurrent/"
RADIUS, SINGULAR = "spectral_radius", "largest_singular_value"


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
        # The learner logs the step, which is the epoch, with its own scores of the same moment.
        pl_module.log_dict(measure(_model(pl_module), self.largest), batch_size=1)


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
        if not isinstance(logger, MLFlowLogger):
            continue
        if text is not None:
            logger.experiment.log_text(logger.run_id, text, f"samples/epoch-{epoch:03}.txt")
        for name, matrix in matrices.items():
            picture = attention_matrix(matrix.values, matrix.columns, matrix.rows, matrix.title)
            logger.experiment.log_figure(logger.run_id, picture, f"{name}/epoch-{epoch:03}.png")


def measure(model: nn.Module, largest: int = LARGEST_BLOCK) -> dict[str, float]:
    """Metric name -> value, of every recurrent matrix of ``model`` with at most ``largest`` rows."""
    found = {}
    for name, block in recurrent_blocks(model).items():
        if len(block) <= largest and bool(block.isfinite().all()):
            block = block.float()
            found[f"{PREFIX}{name}/{RADIUS}"] = float(spectral_radius(block))
            found[f"{PREFIX}{name}/{SINGULAR}"] = float(largest_singular_value(block))
    return found


def _model(module: Any) -> nn.Module:
    model: nn.Module = module.model
    return model

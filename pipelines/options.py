"""The sections of a config, and the options of its ``train`` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipelines.search import Search
from seqapp import tasks  # noqa: F401  (registers tasks, models and networks by name)
from seqapp.config import Section
from seqapp.data import bundled, grammar, memory, pairs, public, steps, tables  # noqa: F401  (registers the data sources by name)
from seqapp.data.splits import SOURCES
from seqapp.models.registry import MODELS
from seqapp.registry import Count, NonNegative, Positive, Probability, Size
from seqapp.tasks import TASKS


@dataclass(frozen=True)
class Training:
    """How weights are fitted.

    Args:
        epochs: most passes over the training split.
        batch_tokens: padded tokens in one batch.
        batch_rows: most rows in one batch.
        learning_rate: the highest rate of the schedule.
        schedule: how the rate falls after the warm-up, over all epochs.
        warmup: share of all steps in which the rate rises from 0.
        weight_decay: decoupled decay of weight matrices; biases, norms and embeddings are spared.
        clip_norm: largest norm of the whole gradient, g <- g * clip_norm / ||g|| when ||g|| > clip_norm (Pascanu et al.
            2013); 0 does not clip.
        clip_value: largest size of each component of the gradient, g_i <- min(max(g_i, -clip_value), clip_value); needs
            clip_norm=0; 0 does not clip.
        truncate: back-propagate through this many steps at most, carrying the state on from piece to piece of a row
            (Williams & Peng 1990), each piece one step of the optimiser; 0 takes whole rows.
        average: decay of the running average of the weights that is kept as the model; 0 keeps the weights themselves.
        keep: the weights of the epoch that is best by the validation score, or those of the last epoch, for a
            validation split whose score is to be reported and must choose nothing.
        patience: stop after this many epochs without a better validation score; 0 never stops early.
        seed: of the weights, the order of batches and the dropout.
        precision: bf16-mixed computes products in bfloat16, which is faster where the processor knows it.
        accelerator: cpu, gpu, or auto for what is there.
        devices: processes on one host, each with a GPU or a share of the cores, that train as one; batch_tokens and
            batch_rows are those of all together.
        nodes: hosts that train as one; more than 1 needs torchrun on each of them.
        calibrate: fit one temperature on the validation split, so that probabilities of classes are as sure as the
            model is right (Guo et al. 2017); false leaves them as they are.
        test: read the test split once, after training.
        model_name: name in the registry; null takes the task and the config's file name up to the first dash.
    """

    epochs: Size = 10
    batch_tokens: Size = 4096
    batch_rows: Size = 64
    learning_rate: Positive = 2e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    weight_decay: NonNegative = 0.0
    clip_norm: NonNegative = 1.0
    clip_value: NonNegative = 0.0
    truncate: Count = 0
    average: Probability = 0.0
    keep: Literal["best", "last"] = "best"
    patience: Count = 0
    seed: Count = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Size = 1
    nodes: Size = 1
    calibrate: bool = True
    test: bool = True
    model_name: str | None = None


SECTIONS: dict[str, Section] = {"task": TASKS, "model": MODELS, "data": SOURCES, "train": Training, "sweep": Search}

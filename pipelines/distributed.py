"""Several processes that train as one: torchrun starts them, Lightning's DDP averages their gradients.

Processes do not change what is learned: docs/decisions/0014-processes-do-not-change-what-is-learned.md.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import reduce
from types import FrameType
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback as LightningCallback
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipelines.launch import check, launched
from pipelines.options import Training
from pipelines.stopping import HOW_ON, LAUNCHED, interrupt
from seqapp import metrics
from seqapp.errors import ConfigError, SeqappError, Stopped
from seqapp.metrics import Metric

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process waits for another one outside the training steps: the first alone measures and publishes."""


class Lost(SeqappError):
    """Another process of this training has ended, so this one cannot go on."""

    def __init__(self) -> None:
        super().__init__(f"another process of this training has ended, so all have; {HOW_ON}")


@dataclass(frozen=True)
class Processes:
    """Those that train together.

    Args:
        rank: of this one, from 0.
        world: how many.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that logs, saves, measures and publishes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.world > 1

    def strategy(self) -> Strategy | str:
        """What the trainer takes. Buffers, such as proposals that follow the model, stay those of each process."""
        # Some networks leave weights out of a step, such as those of classes that no row of a batch is of.
        return DDPStrategy(find_unused_parameters=True, forward_sync_buffers=False) if self.several else "auto"

    def add(self, *numbers: float) -> list[float]:
        """Each of the numbers, added up over the processes."""
        if not self.several:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals, group=_talk())
        return cast(list[float], totals.tolist())

    def add_metrics(self, totals: dict[str, Metric]) -> dict[str, Metric]:
        """The metrics of all processes, in the order of their ranks."""
        if not self.several:
            return totals
        return reduce(metrics.add, self.gather({name: _on_cpu(metric) for name, metric in totals.items()}))

    def gather(self, thing: T) -> list[T]:
        """What each process has, in the order of their ranks."""
        if not self.several:
            return [thing]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, thing, group=_talk())
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process; the others wait for it."""
        if not self.several:
            return make()
        found: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(found, group=_talk())
        return cast(T, found[0])

    def average(self, tables: Iterable[nn.Parameter]) -> None:
        """Average the gradients of ``tables``, of sparse ones only the rows that any process has touched.

        A table that no process has used keeps no gradient.
        """
        tables = list(tables)
        kinds = torch.tensor([0 if p.grad is None else 1 + p.grad.is_sparse for p in tables])
        dist.all_reduce(kinds, dist.ReduceOp.MAX, _talk())
        for table, kind in zip(tables, kinds.tolist(), strict=True):
            if kind == 1:
                table.grad = torch.zeros_like(table) if table.grad is None else table.grad
                dist.all_reduce(table.grad)
                table.grad /= self.world
            if kind == 2:
                # Through the memory of the processor, since nccl adds no sparse tensors.
                rows = (_nothing(table) if table.grad is None else table.grad).coalesce().cpu()
                dist.all_reduce(rows, group=_talk())
                table.grad = (rows / self.world).coalesce().to(table.device)

    def same(self, thing: Any, what: str) -> None:
        """Refuse processes that do not agree.

        Args:
            thing: what each of them has.
            what: its name.

        Raises:
            SeqappError: naming the first that differs.
        """
        for rank, other in enumerate(self.gather(thing)):
            if other != thing:
                raise SeqappError(f"process {rank} has other {what} than process {self.rank}; the same files, package "
                                  "versions and choices on every host fit")  # fmt: skip


ALONE = Processes()


def exclude(module: nn.Module, tables: Iterable[nn.Parameter]) -> None:
    """Leave ``tables`` to :meth:`Processes.average`: DDP would send every row of them, and takes no sparse gradient."""
    left_out = {id(table) for table in tables}
    names = [name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in left_out]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]


# Who is there


def join(options: Training) -> Processes:
    """Meet the other processes that torchrun has started, if the options ask for any.

    Raises:
        ConfigError: if they do not fit what was started.
    """
    check(options)
    if options.devices * options.nodes == 1:
        return ALONE
    if not launched():
        raise ConfigError(
            f"train.devices={options.devices} train.nodes={options.nodes} needs a process for each device; `seqapp "
            "train` starts those of one host, `torchrun -m pipelines train` those of several (docs/distributed.md)"
        )
    if not dist.is_initialized():
        store, rank, world = next(rendezvous("env://"))
        gpu = options.accelerator != "cpu" and torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world,
                                timeout=timedelta(minutes=30))  # fmt: skip
        _met.update(store=store, talk=dist.new_group(backend="gloo", timeout=PATIENCE))
        signal.signal(signal.SIGTERM, _end)
        if rank:
            logging.getLogger().setLevel(logging.ERROR)
    return Processes(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Part from the other processes, after all that is done together."""
    if _met:
        _met.clear()
        dist.destroy_process_group()


def first() -> bool:
    """Whether this process is alone, or the first of those it has met."""
    return not _met or dist.get_rank() == 0


def tells(error: BaseException) -> bool:
    """Whether this process is the one to tell the user of an error that all may have met."""
    if not _met:
        return int(os.environ.get("RANK", "0")) == 0
    if LAUNCHED in os.environ and (isinstance(error, Lost) or _met.get("ended")):
        return False
    try:
        return cast(int, _met["store"].add("told", 1)) == 1
    except RuntimeError:  # the store has gone with the host that kept it
        return True


def is_loss(error: BaseException) -> bool:
    """Whether ``error`` is what the network says when another process has ended, or what :class:`Lost` has become."""
    if _met.get("ended"):
        return True  # the signal came in the middle of what turns every error into one of its own
    texts = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return bool(_met) and isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


_met: dict[str, Any] = {}
"""Once there are others: the store all share, and the group for what is no gradient."""


def _talk() -> Any:
    return _met["talk"]


# When it ends early


class Endings(LightningCallback):
    """Ctrl-C stops all processes before the same step, and SIGTERM, which torchrun sends when one has died, this one.

    Lightning's own ways raise in the middle of a step, where the others wait for this one.
    """

    def __init__(self) -> None:
        self.stopping = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, _end)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self.stopping:
            raise Stopped(f"stopped after the last epoch; {HOW_ON}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # What is left is to log so, which another signal must not cut off.
        _met["ending"] = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.stopping = True
        if LAUNCHED in os.environ:
            interrupt()


def _end(signum: int, frame: FrameType | None) -> None:
    if not _met.get("ending"):
        _met["ending"] = _met["ended"] = True
        raise Lost


def _on_cpu(metric: Metric) -> Metric:
    """The same figures where every process can read them."""
    given: Any = metric
    parts = {field.name: getattr(given, field.name) for field in fields(given)}
    return cast(
        Metric, replace(given, **{name: part.cpu() for name, part in parts.items() if isinstance(part, Tensor)})
    )


def _nothing(table: Tensor) -> Tensor:
    """A sparse gradient of no rows."""
    ids, values = torch.empty(1, 0, dtype=torch.int64), torch.empty(0, *table.shape[1:], dtype=table.dtype)
    return torch.sparse_coo_tensor(ids, values, table.shape, check_invariants=False)

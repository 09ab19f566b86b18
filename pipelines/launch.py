"""Start the processes that train together. No trainer is imported here: the one that starts others needs none."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipelines.options import SECTIONS, Training
from pipelines.stopping import HOW_ON, LAUNCHED, NOT_YET
from seqapp import config
from seqapp.errors import STOPPED, ConfigError, SeqappError, Stopped

log = logging.getLogger(__name__)

# Ctrl-C ends a process without a word until it knows better: while it imports, and while it waits for the others.
_BEGIN = ("import runpy, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
          "runpy.run_module('pipelines', run_name='__main__', alter_sys=True)")  # fmt: skip


def launched() -> bool:
    """Whether torchrun has started this process, with others or alone."""
    return dist.is_torchelastic_launched()


def check(options: Training) -> None:
    """Refuse processes that this host cannot run, or that nobody has started.

    Raises:
        ConfigError: naming the option and what would fit.
    """
    wanted = options.devices * options.nodes
    if launched() and int(os.environ["WORLD_SIZE"]) != wanted:
        raise ConfigError(
            f"train.devices x train.nodes is {options.devices} x {options.nodes}, but torchrun has started "
            f"{os.environ['WORLD_SIZE']} process(es); train.devices is its --nproc-per-node, train.nodes its --nnodes"
        )
    if wanted == 1:
        return
    gpus = torch.cuda.device_count()
    if options.accelerator == "gpu" or (options.accelerator == "auto" and gpus):
        if options.devices > gpus:
            raise ConfigError(f"train.devices is {options.devices}, but this host has {gpus} GPU(s); train.devices="
                              f"{max(1, gpus)} fits, or train.accelerator=cpu")  # fmt: skip
    elif options.devices > (cores := os.cpu_count() or 1) and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        log.warning("train.devices is %d, but this host has %d core(s), so the processes slow each other down",
                    options.devices, cores)  # fmt: skip


def launch(configs: Sequence[str | Path], overrides: Sequence[str]) -> bool:
    """Run this very command in several processes, if the configs ask for it and torchrun has not started this one.

    Args:
        configs: YAML configs.
        overrides: ``key=value``.

    Returns:
        False if this process is to do the work.

    Raises:
        SeqappError: if the configs ask for different numbers of processes, or one process was killed.
        SystemExit: if one has failed and told why.
        Stopped: on Ctrl-C.
    """
    if launched():
        return False
    chosen = [Training(**config.load(Path(path), overrides, sections=SECTIONS)["train"]) for path in configs]
    devices, nodes = {one.devices for one in chosen}, {one.nodes for one in chosen}
    if devices == nodes == {1}:
        return False
    if len(devices) > 1 or len(nodes) > 1:
        raise ConfigError("the configs differ in train.devices or train.nodes; one command for each fits")
    if nodes != {1}:
        raise ConfigError(
            f"train.nodes={max(nodes)}: `torchrun --nnodes {max(nodes)} --node-rank N --nproc-per-node {max(devices)} "
            "--master-addr FIRST_HOST -m pipelines train ...` on every host N, from 0, fits (docs/distributed.md)"
        )
    for one in chosen:
        check(one)
    count = max(devices)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns where all weights are used, as in most networks
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what it says is said here, in one sentence
    asked = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=60,
    )
    # Elastic's own handler comes late, and raises again where Ctrl-C comes twice.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGHUP,SIGQUIT"
    with TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        os.environ[LAUNCHED] = str(said)
        before = signal.signal(signal.SIGINT, _end_all)
        try:
            _run_all(asked, count)
        except Stopped:
            raise Stopped(said.read_text(encoding="utf-8") if said.is_file() else NOT_YET) from None
        finally:
            for child in psutil.Process().children():
                child.kill()  # begun when the signal came
            if signal.getsignal(signal.SIGINT) is _end_all:  # else Ctrl-C has come, and once is enough
                signal.signal(signal.SIGINT, before)
            del os.environ[LAUNCHED]
    return True


def _end_all(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SignalException("Ctrl-C", signal.SIGINT)


def _run_all(asked: LaunchConfig, count: int) -> None:
    try:
        elastic_launch(asked, sys.executable)("-c", _BEGIN, *sys.argv[1:])
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode == STOPPED:
                raise Stopped from None
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                raise SeqappError(
                    f"process {rank} of {count} was killed by {failure.signal_name()}, so all have ended; {HOW_ON}"
                ) from None
        sys.exit(1)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise Stopped from None
        raise SeqappError(f"the training was ended by {error.sigval.name}; {HOW_ON}") from None

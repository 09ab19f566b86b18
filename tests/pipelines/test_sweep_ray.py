"""The same sweep on a Ray cluster: the same runs in MLflow, also when a worker dies or the command is cut off."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray")

from pipelines.sweep import sweep
from pipelines.trials import Trial
from seqapp.errors import Stopped
from tests.pipelines.clusters import ray_here
from tests.pipelines.worlds import Said, World

RATES = "train.learning_rate=1e-3..1e-1 log"
CHOICES = ["sweep.trials=3", "sweep.sampler=random", "sweep.pruner=none", "train.epochs=3"]
CHECKPOINTS = "runs/*/trials/*/checkpoints/last.ckpt"

# Of Ray about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*is already reported"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for all tests, as a program that has started it."""
    import pipelines.sweep_ray  # noqa: F401  (which sets Ray's environment)

    with ray_here(2, "ray.tune", "pytorch_lightning", "mlflow"):
        yield


def training() -> list[psutil.Process]:
    """Ray's workers that train, which say so in their titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and "train" in title:
                found.append(process)
    return found


def test_it_is_the_sweep_of_one_machine_even_after_a_death_and_a_stop(world: World) -> None:
    whole = sweep("tiny.yaml", CHOICES, over=[RATES])
    killed: list[int] = []
    already = set(world.path.glob(CHECKPOINTS))

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            if set(world.path.glob(CHECKPOINTS)) - already:
                for process in training():
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.01)

    def stop(trial: Trial, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Stopped, match=r"stopped after [12] of 3 trials; the same command with --resume goes on"):
        sweep("tiny.yaml", CHOICES, over=[RATES], backend="ray", tell=stop)
    killer.join()
    assert killed
    swept = sweep("tiny.yaml", CHOICES, over=[RATES], backend="ray", resume=True)
    assert [(trial.number, trial.name, trial.values, trial.score, trial.state) for trial in swept.trials] == [
        (trial.number, trial.name, trial.values, trial.score, trial.state) for trial in whole.trials
    ]
    for trial in (*whole.trials, *swept.trials):
        assert world.client.get_run(trial.run_id).info.status == "FINISHED"
        assert [step for step, _ in world.history(trial.run_id)["train/nll"]] == [0, 1, 2]
    mine, ray = (world.client.get_run(found.run_id) for found in (whole, swept))
    assert {**ray.data.params, "backend": "optuna"} == mine.data.params
    assert ray.data.tags.keys() == mine.data.tags.keys()
    files = [{file.path for file in world.client.list_artifacts(found.run_id)} for found in (whole, swept)]
    assert files[0] == files[1]


@pytest.mark.parametrize(("address", "sentence"), [
    ("auto", "--address auto: the machines of a cluster cannot reach the tracking database sqlite:"),
    ("ray://head:10001", "--address ray://head:10001: Ray's client is not supported; run the command on a machine of"),
])  # fmt: skip
def test_a_cluster_that_cannot_work_is_refused(
    world: World, seqapp: Callable[..., Said], address: str, sentence: str
) -> None:
    said = seqapp("sweep", "tiny.yaml", "--over", RATES, "--backend", "ray", "--address", address)
    assert said.status == 1
    assert sentence in said.err
    assert not Path("runs").exists()

"""Ray on this machine, as small as it gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil


@contextmanager
def ray_here(processors: int, *modules: str) -> Iterator[Any]:
    """Ray for a while; no process of it is left behind.

    Args:
        processors: as many workers start at once.
        modules: that workers import while they wait.
    """
    import ray

    ray.init(address="local", num_cpus=processors, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             object_store_memory=80 << 20, _system_config={"preload_python_modules": list(modules)})  # fmt: skip
    try:
        yield ray
    finally:
        started = [process for process in psutil.Process().children(recursive=True) if _of_ray(process)]
        ray.shutdown()
        _, left = psutil.wait_procs(started, timeout=30)
        for process in left:
            process.kill()
    assert started
    assert not left


def _of_ray(process: psutil.Process) -> bool:
    try:
        return any(part.startswith("ray::") or "/ray/" in part for part in process.cmdline())
    except psutil.Error:  # gone meanwhile
        return False

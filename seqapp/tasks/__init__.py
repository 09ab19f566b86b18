"""One file per task; importing this package registers them all."""

from seqapp.tasks import generation, memory, sentiment, translation  # noqa: F401  (registers the tasks)
from seqapp.tasks.base import TASKS, InputError, Task

__all__ = ["TASKS", "InputError", "Task"]

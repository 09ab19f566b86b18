"""What Ctrl-C does to a training, and what the user reads then."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqapp.errors import Stopped

HOW_ON = "`--resume` goes on from the end of the last epoch"
ANEW = "`--resume` begins it again"
NOT_YET = "stopped before the training began; the same command begins it"
LAUNCHED = "SEQAPP_LAUNCHED"
"""In the environment of processes that :func:`pipelines.launch.launch` started: a file, for :func:`note`."""

_now: dict[str, Any] = {"sentence": NOT_YET, "interrupted": False}


def note(sentence: str) -> None:
    """Keep what the user is to read if Ctrl-C comes from now on, here and for the process that launched this one."""
    _now["sentence"] = sentence
    if (file := os.environ.get(LAUNCHED)) and int(os.environ.get("RANK", "0")) == 0:
        part = Path(f"{file}.part")
        part.write_text(sentence, encoding="utf-8")
        part.replace(file)


def how_on(epochs: int) -> str:
    """How to go on with a run of which so many epochs have ended."""
    return HOW_ON if epochs else ANEW


def interrupted() -> bool:
    """Whether Ctrl-C has come to this process, which another one has launched."""
    return bool(_now["interrupted"])


def interrupt(*_: object) -> None:
    """Take note of Ctrl-C, and be deaf to further ones; a handler of signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _now["interrupted"] = True


def _raise_interrupt(*_: object) -> None:
    interrupt()
    raise KeyboardInterrupt


def heed() -> None:
    """Let Ctrl-C raise from now on, if :func:`pipelines.launch.launch` has started this process."""
    if LAUNCHED in os.environ:
        signal.signal(signal.SIGINT, _raise_interrupt)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C within ends with the sentence that :func:`note` has kept.

    Raises:
        Stopped: on Ctrl-C, and on whatever else ends a launched process after Ctrl-C, such as the loss of another one.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupted():
            raise Stopped(_now["sentence"]) from None
        raise

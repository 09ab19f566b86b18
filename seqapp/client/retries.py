"""When a call is tried again, and for how long it may last."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from seqapp.client.errors import ClientError, DeadlineExceeded

FIRST_PAUSE = 0.25
"""Longest pause before the second try, in seconds; it doubles with every try."""
LONGEST_PAUSE = 8.0
"""Longest pause that the client chooses by itself, in seconds."""
MOST_PATIENCE = 60.0
"""Longest pause that a server may ask for, in seconds; of one that asks for more the error is raised at once."""
RETRIES = 3
"""Most tries after the first of a call without a limit of time, if nothing else is said."""


class Attempts:
    """The tries of one call, between which pauses grow, with full jitter (Brooker 2015).

    Args:
        timeout: seconds for all tries and pauses together; None sets no limit.
        retries: most tries after the first; None sets no limit but the time for the call, or is 3 where that has none.
        clock: of seconds, monotonic.
        chance: a number between its two arguments, drawn evenly.
    """

    def __init__(
        self,
        timeout: float | None,
        retries: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._clock, self._chance = clock, chance
        self._timeout = timeout
        self._retries = math.inf if timeout is not None else RETRIES
        if retries is not None:
            self._retries = retries
        self._deadline = None if timeout is None else clock() + timeout
        self._failed = 0

    def left(self) -> float | None:
        """Seconds until the deadline; None if there is none.

        Raises:
            DeadlineExceeded: if it is over.
        """
        if self._deadline is None:
            return None
        left = self._deadline - self._clock()
        if left < 0.001:
            raise self.late()
        return left

    def late(self) -> DeadlineExceeded:
        """What a call ends with whose deadline is over."""
        return DeadlineExceeded(f"no answer within {self._timeout:g} s")

    def pause(self, error: ClientError) -> float:
        """Seconds to wait before the next try.

        Args:
            error: what the last try ended with; it is raised if there is no next one, or no time for it.
        """
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failed, 30))
        self._failed += 1
        asked = error.retry_after or 0.0
        # Those whom a server has sent away at once must not all come back at once.
        pause = asked + self._chance(0.0, longest)
        late = self._deadline is not None and self._clock() + pause >= self._deadline
        if not error.retryable or self._failed > self._retries or asked > MOST_PATIENCE or late:
            raise error
        return pause

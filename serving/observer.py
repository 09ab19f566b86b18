"""What the server tells whoever counts: every method may be left as it is, and does nothing then."""

from __future__ import annotations


class Observer:
    """Told of everything that a person who runs a server wants to count. Methods are quick and never raise.

    ``task``, ``model`` and ``version`` are those of a live model; seconds are of a monotonic clock.
    """

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer was sent; ``route`` is the template of its path, or "" where there is none."""

    def finished(
        self, task: str, model: str, version: str, outcome: str, *, queued: float, computed: float, tokens: int
    ) -> None:
        """A request has left its engine.

        Args:
            outcome: ok, invalid, overloaded, late, gone or failed.
            queued: seconds before its first step.
            computed: seconds of steps that it was in.
            tokens: written for it, where it was a text.
        """

    def batch(self, task: str, model: str, version: str, *, inputs: int, seconds: float) -> None:
        """A step was computed for so many inputs."""

    def load(self, task: str, model: str, version: str, *, waiting: int, running: int) -> None:
        """So many inputs wait, and so many are in the running batch."""

    def live(self, task: str, model: str, version: str, *, is_live: bool) -> None:
        """A version went live, or is no more."""

    def reloaded(self, model: str, outcome: str) -> None:
        """A reload of a model has come to its end: unchanged, swapped or kept."""

    def refused(self, kind: str) -> None:
        """A request was refused before any model saw it; ``kind`` is that of its problem."""

    def shadow(self, task: str, model: str, version: str, *, agrees: bool) -> None:
        """A shadow has answered as the live model did, or otherwise."""

"""Names of classes <-> their indices."""

from __future__ import annotations

from collections.abc import Iterable

from seqapp.errors import DataError
from seqapp.registry import suggest


class Vocabulary:
    """A fixed, ordered set of names.

    Args:
        names: distinct; the index of a name is its place.

    Raises:
        DataError: if a name occurs twice.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._index = {name: index for index, name in enumerate(self.names)}
        if len(self._index) != len(self.names):
            raise DataError(f"names must be distinct, not {self.names}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The index of ``name``.

        Raises:
            DataError: if it is unknown, with what is known.
        """
        if name not in self._index:
            raise DataError(f"no class is called {name!r}; {suggest(name, self.names)}")
        return self._index[name]

"""What is kept of things that are over: enough of it to answer what comes late."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_CAPACITY: Final = 4096


class RecentMap(Generic[K, V]):
    """The first value of each of the last few thousand keys."""

    def __init__(self) -> None:
        self._values: OrderedDict[K, V] = OrderedDict()

    def add(self, key: K, value: V) -> None:
        """Keep a value unless the key has one; the oldest key makes room."""
        self._values.setdefault(key, value)
        if len(self._values) > _CAPACITY:
            self._values.popitem(last=False)

    def get(self, key: K) -> V | None:
        """The value of a key, or None."""
        return self._values.get(key)

    def __contains__(self, key: K) -> bool:
        return key in self._values

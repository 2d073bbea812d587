"""Which session is below which: agents start others, and one call ends them all."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import pairwise

from ps_sglang.gateway.errors import BadRequest


class Family:
    """Parents of sessions, by their ids.

    A session that has ended stays known while one below it goes on: who ends the first of all
    reaches that one too.
    """

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._children: dict[str, dict[str, None]] = {}  # in the order in which they came

    def join(self, id: str, ancestors: Sequence[str]) -> None:
        """A session is below these, the nearest first; raises BadRequest if that cannot be."""
        line = (id, *ancestors)
        for child, parent in pairwise(line):
            known = self._parents.get(child)
            if known is not None and known != parent:
                raise BadRequest(
                    f"The session {child!r} is below {known!r} already, and cannot be below "
                    f"{parent!r} too.",
                    param="session_id",
                )
            if known is None:
                if child == parent or child in self.above(parent):
                    raise BadRequest(
                        f"The session {child!r} cannot be below {parent!r}, which is below it.",
                        param="session_id",
                    )
                self._parents[child] = parent
                self._children.setdefault(parent, {})[child] = None

    def below(self, id: str) -> list[str]:
        """The session, and all below it, each behind the one above it."""
        found = [id]
        for one in found:
            found += self._children.get(one, ())
        return found

    def leave(self, id: str, known: Container[str]) -> None:
        """A session is over; forget what leads to nobody who is `known` any more."""
        while id not in known and not self._children.get(id):
            parent = self._parents.pop(id, None)
            if parent is None:
                return
            del self._children[parent][id]
            if not self._children[parent]:
                del self._children[parent]
            id = parent

    def above(self, id: str) -> tuple[str, ...]:
        """The sessions above one, the nearest first."""
        line = [id]
        while (parent := self._parents.get(line[-1])) is not None:
            line.append(parent)
        return tuple(line[1:])

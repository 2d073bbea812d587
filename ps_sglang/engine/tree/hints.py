"""Agent programs' hints about conversations, as an order of eviction.

A *released* conversation is over: the pages that only it uses go first. The pages of a *pinned*
one go last, until it is unpinned; a full pool evicts them nonetheless when nothing else is left.
Between the two everything goes as SGLang's eviction policy has it.

Every rank of a worker must decide alike, so nothing here looks at a clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

MOST_CONVERSATIONS: Final = 16_384
"""Conversations remembered; beyond, the least recently used one is forgotten."""

_RELEASED, _USUAL, _PINNED = range(3)


@dataclass(slots=True)
class NodeMarks:
    """Marks of hints on a node of the tree, at its attribute `hint_marks`.

    `pins` counts the conversations that hold it; `released_at` is its last access at its release.
    """

    pins: int = 0
    released_at: Any = None


def _marks(node: Any) -> NodeMarks:
    """A node's marks; SGLang's nodes begin without."""
    if not hasattr(node, "hint_marks"):
        node.hint_marks = NodeMarks()
    marks: NodeMarks = node.hint_marks
    return marks


class EvictionOrder:
    """SGLang's eviction strategy, with released nodes before all others and pinned ones after."""

    def __init__(self, usual: Any) -> None:
        """Refine `usual`, the strategy of the tree's eviction policy."""
        self._usual = usual

    def get_priority(self, node: Any) -> tuple[int, Any]:
        """What sorts a node among others; the smallest goes first."""
        return self._rank(node), self._usual.get_priority(node)

    def _rank(self, node: Any) -> int:
        marks: NodeMarks | None = getattr(node, "hint_marks", None)
        if marks is None:
            return _USUAL
        if marks.pins:
            return _PINNED
        # A node that was used after its release is in use again.
        return _RELEASED if marks.released_at == node.last_access_time else _USUAL


@dataclass
class _Conversation:
    """The nodes, the first below the root first, that a conversation's last request put in.

    `held` are those that its pin holds. `ended` is the sequence number at which it was released.
    """

    path: list[int] = field(default_factory=list)
    is_pinned: bool = False
    held: list[int] = field(default_factory=list)
    ended: int = 0


class Conversations:
    """Which nodes of the tree belong to which conversation.

    Nodes are remembered by their ids, which SGLang never uses twice, so that none outlives its
    eviction here.
    """

    def __init__(self, node_by_id: Callable[[int], Any], most: int = MOST_CONVERSATIONS) -> None:
        """`node_by_id` finds a node of the tree, or raises KeyError; `most` are remembered."""
        self._node_by_id = node_by_id
        self._most = most
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()

    def reached(self, session: str, sequence_number: int, node_id: int) -> None:
        """A request's pages are in the tree up to a node."""
        conversation = self._conversation(session)
        conversation.path = [node.id for node in self._down_to([node_id])]
        if conversation.is_pinned:
            self._hold(conversation)
        if sequence_number < conversation.ended:
            self._release(conversation.path)  # it was under way when the conversation ended

    def release(self, session: str, sequence_number: int) -> None:
        """Let the pages that only this conversation uses go first.

        Requests with a lower sequence number began before it ended.
        """
        self.unpin(session)
        conversation = self._conversation(session)
        conversation.ended = sequence_number
        self._release(conversation.path)

    def pin(self, session: str) -> None:
        """Let this conversation's pages go last."""
        conversation = self._conversation(session)
        conversation.is_pinned = True
        self._hold(conversation)

    def unpin(self, session: str) -> None:
        """Let this conversation's pages go as usual."""
        if session in self._conversations:
            self._unpin(self._conversations[session])

    def _conversation(self, session: str) -> _Conversation:
        conversation = self._conversations.setdefault(session, _Conversation())
        self._conversations.move_to_end(session)
        if len(self._conversations) > self._most:
            _, forgotten = self._conversations.popitem(last=False)
            self._unpin(forgotten)
        return conversation

    def _release(self, path: list[int]) -> None:
        """Mark the end of a path, as far up as no other path branches off."""
        below = None
        for node in reversed(self._down_to(path)):
            if set(node.children.values()) - {below}:
                return
            _marks(node).released_at = node.last_access_time
            below = node

    def _hold(self, conversation: _Conversation) -> None:
        self._add_pins(conversation.held, -1)
        conversation.held = [node.id for node in self._down_to(conversation.path)]
        self._add_pins(conversation.held, 1)

    def _unpin(self, conversation: _Conversation) -> None:
        conversation.is_pinned = False
        self._add_pins(conversation.held, -1)
        conversation.held = []

    def _add_pins(self, path: list[int], number: int) -> None:
        for node in filter(None, map(self._find, path)):
            _marks(node).pins += number

    def _down_to(self, path: list[int]) -> list[Any]:
        """The nodes from below the root down to the last of a path's that is still there."""
        node = next(filter(None, map(self._find, reversed(path))), None)
        nodes = []
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def _find(self, node_id: int) -> Any | None:
        try:
            return self._node_by_id(node_id)
        except KeyError:
            return None

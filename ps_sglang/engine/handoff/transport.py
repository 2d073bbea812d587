"""What the handoff asks of a transfer backend beyond SGLang's interface.

A sender, receiver or manager that can do it has these members; SGLang's own do not, and then
nothing happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class TokenAwareSender(Protocol):
    """A prefill worker's end that compares token ids before pages move."""

    def open(self, base_prefix: Sequence[int]) -> None:
        """Wait for a decode worker that has these token ids."""
        ...


@runtime_checkable
class TokenAwareReceiver(Protocol):
    """A decode worker's end that compares token ids before pages move."""

    holds_everything: bool

    def expect(self, base_prefix: Sequence[int]) -> None:
        """The prefill worker must have these token ids."""
        ...


@runtime_checkable
class RefusingManager(Protocol):
    """A prefill worker's transfers, which can tell a decode worker that nothing will come."""

    def refuse(self, room: int) -> None:
        """The request of this room was refused here."""
        ...


def announce(sender: Any, base_prefix: Sequence[int]) -> None:
    """Tell the prefill worker's end which token ids it offers."""
    if isinstance(sender, TokenAwareSender):
        sender.open(base_prefix)


def expect(receiver: Any, base_prefix: Sequence[int]) -> None:
    """Tell the decode worker's end which token ids it expects."""
    if isinstance(receiver, TokenAwareReceiver):
        receiver.expect(base_prefix)


def holds_everything(receiver: Any) -> bool:
    """Whether the decode worker's end needs no page and no answer."""
    return isinstance(receiver, TokenAwareReceiver) and receiver.holds_everything


def refuse(manager: Any, room: int) -> None:
    """Tell the decode worker of a request that the prefill worker has refused it."""
    if isinstance(manager, RefusingManager):
        manager.refuse(room)

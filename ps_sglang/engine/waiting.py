"""A worker that waits for pages neither spins nor oversleeps.

SGLang's idle sleeper wakes on its own request sockets only; a scheduler with a request in a
handoff queue polls in a loop instead and burns a core that its peers need. Here such a
scheduler sleeps on the request sockets and on a *doorbell*: a wake-up that every change of a
transfer's state rings.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

import zmq

from ps_sglang.engine.hooking import after

# Nothing a scheduler waits for is silent for longer: transfers ring, requests arrive on
# sockets. The limit only bounds how late a timeout (bootstrap, waiting) is noticed.
_LONGEST_SLEEP_MS: Final = 100
# Grammars are compiled by a thread pool that rings nothing.
_GRAMMAR_POLL_MS: Final = 2


class Doorbell:
    """A wake-up that any thread may ring and one scheduler loop waits for."""

    def __init__(self, sockets: list[Any]) -> None:
        """Messages of `sockets`, which are zmq sockets or descriptors, end a wait as well."""
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        self._poller = zmq.Poller()
        for source in [*sockets, self._inside]:
            self.listen(source)

    def listen(self, source: Any) -> None:
        """Let messages of one more socket, or descriptor, end a wait."""
        self._poller.register(source, zmq.POLLIN)

    def ring(self) -> None:
        """End the current wait, or the next one. Never blocks; safe from any thread."""
        # Full of unheard rings: the next wait ends at once anyway.
        with contextlib.suppress(BlockingIOError):
            self._outside.send(b"!")

    @property
    def fd(self) -> int:
        """Readable from a ring on until `quiet` is called, for sleepers of another kind."""
        return self._inside.fileno()

    def wait(self, timeout_ms: int) -> None:
        """Sleep until a ring, a message, or `timeout_ms` milliseconds."""
        self._poller.poll(timeout_ms)
        self.quiet()

    def quiet(self) -> None:
        """Forget past rings."""
        with contextlib.suppress(BlockingIOError):
            while self._inside.recv(4096):
                pass

    def close(self) -> None:
        """Give back its sockets."""
        self._inside.close()
        self._outside.close()


class _Waiting:
    """What this process's scheduler sleeps on, if it may sleep."""

    doorbell: Doorbell | None = None
    idle_poller: Any = None  # of SGLang's idle sleeper
    collect: Callable[[], None] | None = None


@after(
    "disaggregation.common.conn.CommonKVManager.update_status",
    "self", "bootstrap_room", "status",
)  # fmt: skip
def ring(*_: object) -> None:
    """After `CommonKVManager.update_status` (and on arriving pages): wake the scheduler."""
    if _Waiting.doorbell is not None:
        _Waiting.doorbell.ring()


@after("managers.scheduler.Scheduler.init_idle_sleeper", "self")
def init_idle_sleeper(_result: None, scheduler: Any) -> None:
    """After `Scheduler.init_idle_sleeper`: install a doorbell if the scheduler may sleep."""
    if scheduler.idle_sleeper is not None:
        channels = scheduler.ipc_channels
        _Waiting.doorbell = Doorbell([channels.recv_from_tokenizer, channels.recv_from_rpc])
        # Requests to the event stream find an idle scheduler asleep.
        _Waiting.idle_poller = scheduler.idle_sleeper.poller
        _Waiting.idle_poller.register(_Waiting.doorbell.fd, zmq.POLLIN)


def watch_mailbox(fd: int, collect: Callable[[], None]) -> None:
    """Let messages at `fd` end any sleep of the scheduler, which calls `collect` when idle."""
    if _Waiting.doorbell is not None:
        _Waiting.doorbell.listen(fd)
        _Waiting.idle_poller.register(fd, zmq.POLLIN)
        _Waiting.collect = collect


@after("managers.scheduler.Scheduler.on_idle", "self")
def on_idle(_result: None, scheduler: Any) -> None:
    """After `Scheduler.on_idle`: with requests in handoff queues only, sleep until one changes."""
    if _Waiting.doorbell is None:
        return
    if _Waiting.collect is not None:
        _Waiting.collect()
    if scheduler.is_fully_idle():
        _Waiting.doorbell.quiet()
        return
    grammars = scheduler.grammar_manager.has_waiting_grammars()
    _Waiting.doorbell.wait(_GRAMMAR_POLL_MS if grammars else _LONGEST_SLEEP_MS)

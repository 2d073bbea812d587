"""The event stream in a worker's scheduler: what it publishes, and what it is asked for.

SGLang publishes KV events when it reports statistics, which a busy decode worker does every 40
steps; here each pass of the scheduler's loop does. Hints about conversations come in at one rank
and go to all ranks the way that SGLang's own time-outs do, as every rank must evict the same pages.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import msgspec

from ps_sglang.cluster_key import from_environment
from ps_sglang.engine import metrics, waiting
from ps_sglang.engine.compat.srt import EventPublisherFactory
from ps_sglang.engine.hooking import after, around
from ps_sglang.engine.request_state import next_sequence_number
from ps_sglang.engine.tree.base_token_tree import BaseTokenTree
from ps_sglang.events.messages import PUBLISHER, Pin, Release, Span
from ps_sglang.events.publisher import Command, WorkerEventPublisher


class Unpin(msgspec.Struct, frozen=True):
    """To all ranks: a conversation's pin has ended."""

    session: str


Hint = Pin | Release | Unpin


class SchedulerEvents:
    """Requests that wait for the scheduler's thread, and the publisher that received them."""

    def __init__(self, publisher: WorkerEventPublisher) -> None:
        self.publisher = publisher
        self._commands: deque[Command] = deque()
        self._pins: dict[str, float] = {}  # session -> when its pin ends
        publisher.on_command(self._enqueue)

    def _enqueue(self, command: Command) -> None:
        self._commands.append(command)
        waiting.ring()

    def commands(self, now: float) -> list[Command | Unpin]:
        """What is to be carried out by `now` (monotonic seconds), in order."""
        due: list[Command | Unpin] = []
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, Pin):
                self._pins[command.session] = now + command.seconds
            elif isinstance(command, Release):
                self._pins.pop(command.session, None)
            due.append(command)
        for session in [name for name, end in self._pins.items() if end <= now]:
            del self._pins[session]
            due.append(Unpin(session))
        return due


class _Process:
    """The event stream of this process's scheduler; None where another rank has it, or none."""

    events: SchedulerEvents | None = None


def register() -> None:
    """Make the event stream selectable as a publisher of KV events."""
    EventPublisherFactory.register_publisher(PUBLISHER, _publisher)


def _publisher(**config: Any) -> WorkerEventPublisher:
    """The publisher of the rank that SGLang has chosen for it, which is this one."""
    key = from_environment(os.environ)
    publisher = WorkerEventPublisher(**config, key=key, count=metrics.refused)
    _Process.events = SchedulerEvents(publisher)
    return publisher


def record(span: Span) -> None:
    """Publish a request's span, if this worker has an event stream."""
    if _Process.events is not None:
        _Process.events.publisher.record(span)


@after("managers.scheduler.Scheduler._poll_timeout_aborts", "self")
def poll_timeout_aborts(aborts: list[Any], scheduler: Any) -> list[Any]:
    """After `Scheduler._poll_timeout_aborts`: send hints to all ranks along with the aborts."""
    # Without a tree (--disable-radix-cache) there is nothing to publish, and no hint to apply.
    if _Process.events is None or not isinstance(scheduler.tree_cache, BaseTokenTree):
        return aborts
    commands = _Process.events.commands(time.monotonic())
    hints = [command for command in commands if isinstance(command, Hint)]
    if len(hints) < len(commands):
        scheduler.tree_cache.republish()
    return [*aborts, *hints]


@around("managers.scheduler.Scheduler.process_input_requests", "self", "recv_reqs")
def process_input_requests(original: Any, scheduler: Any, recv_reqs: list[Any]) -> None:
    """Around `Scheduler.process_input_requests`: apply hints, then publish what changed."""
    for hint in recv_reqs:
        if isinstance(hint, Hint):
            _apply(hint, scheduler.tree_cache.conversations)
    original(scheduler, [request for request in recv_reqs if not isinstance(request, Hint)])
    scheduler.kv_events_publisher.publish_kv_events()


def _apply(hint: Hint, conversations: Any) -> None:
    if isinstance(hint, Release):
        conversations.release(hint.session, next_sequence_number())
    elif isinstance(hint, Pin):
        conversations.pin(hint.session)
    else:
        conversations.unpin(hint.session)

"""The loop of the thread that receives other workers' messages about handoffs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from ps_sglang.engine.transfer.messages import Frames, MalformedMessageError
from ps_sglang.wires import Refusal, Refusals

logger = logging.getLogger(__name__)

_TICK_S: Final = 0.5


def serve(
    socket: zmq.Socket[Any], receive: Callable[[Frames], None], tick: Callable[[], None],
    *, refusals: Refusals, until: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Hand every message to `receive`, and call `tick` twice a second, until the end.

    `socket` is a PULL socket that this thread alone reads. `receive` is `Lender.receive` or
    `Reader.receive`; frames are buffers that it may keep. `refusals` hears of messages that are
    none. At each tick `until` says whether to return.
    """
    # A time limit costs nothing where a poller costs some 20 us a message.
    socket.setsockopt(zmq.RCVTIMEO, int(_TICK_S * 1000))
    tick_at = time.monotonic()
    while True:
        try:
            if time.monotonic() >= tick_at:
                if until():
                    return
                tick_at = time.monotonic() + _TICK_S
                tick()
            receive(_message(socket))
        except zmq.Again:
            continue  # nothing came until the next tick
        except MalformedMessageError as error:
            refusals.add(Refusal.MALFORMED, str(error))
        except Exception:  # this thread's outermost loop: without it all transfers hang
            logger.exception("Failed on a message on the KV transfer port")


def _message(socket: zmq.Socket[Any]) -> Frames:
    """The next message; its pages are not copied."""
    frames: Frames = [socket.recv()]
    while socket.getsockopt(zmq.RCVMORE):
        frames.append(socket.recv(copy=False).buffer)
    return frames

"""The loop of the thread that receives other workers' messages about handoffs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

import zmq

from ps_sglang.cluster_key import from_environment
from ps_sglang.engine.compat.srt import CommonKVReceiver
from ps_sglang.engine.hooking import around
from ps_sglang.engine.transfer.messages import MOST_BYTES, Frames, MalformedMessageError
from ps_sglang.wires import Refusal, Refusals, as_client, as_listener, is_guarded

logger = logging.getLogger(__name__)

_TICK_S: Final = 0.5


@around("utils.network.get_zmq_socket_on_host", "context", "socket_type", "host", "restrict_peers")
def get_zmq_socket_on_host(
    original: Callable[..., tuple[int, Any]], context: zmq.Context[Any], *args: Any, **kwargs: Any
) -> tuple[int, Any]:
    """Around `network.get_zmq_socket_on_host`: limit messages, and ask peers for the cluster's key.

    Both must be set before the socket listens. What this process connects to listens in the same
    way in another worker. That holds for SGLang's own transfer backends, too.
    """
    key = from_environment(os.environ)
    context.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES)
    as_listener(context, key)
    port, socket = original(context, *args, **kwargs)
    if key is not None and not is_guarded(socket):
        raise RuntimeError("the KV transfer port would be open to all: CURVE was not taken")
    for clients in (context, CommonKVReceiver._ctx):
        as_client(clients, key)
    return port, socket


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
